from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from small_networks import LABELS, Exported, exported
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.graph_contract import GraphContract
from export.repository import Draft, PublishError, default_max_batch_size, draft, model_config
from stn_serve.errors import ConfigurationError
from stn_serve.metadata import InputImage
from stn_serve.registry import ModelRegistry
from stn_serve.repository import model_directories, read_config
from stn_serve.signature import metadata_of_config


@pytest.fixture(scope="module")
def affine() -> Exported:
    return exported("affine")


@pytest.fixture
def contract(affine: Exported) -> GraphContract:
    return affine.contract


def test_a_published_model_is_served(affine: Exported, tmp_path: Path) -> None:
    assert publish(affine, tmp_path) == tmp_path / "small" / "1"
    served = ModelRegistry.load(tmp_path).find("small")
    assert served.model.labels == LABELS
    assert served.model.metadata == affine.contract.metadata
    assert served.model.max_batch_size == 64


@pytest.mark.parametrize(("side", "channels", "expected"), [(28, 1, 64), (224, 3, 32), (448, 3, 8), (4000, 3, 1)])
def test_batches_of_large_images_are_small(side: int, channels: int, expected: int) -> None:
    image = InputImage(height=side, width=side, color="gray" if channels == 1 else "rgb")
    assert default_max_batch_size(image) == expected


def test_the_configuration_reads_back(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    text = (tmp_path / "small" / "config.pbtxt").read_text()
    config = text_format.Parse(text, ModelConfig())
    assert config == model_config("small", affine.contract, 64)
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 64)
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[14, 12, 1], [3], [1, 2, 3]]
    assert [tensor.label_filename for tensor in config.output] == ["labels.txt", ""]
    assert config.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 1024
    assert [sample.batch_size for sample in config.model_warmup] == [1, 2, 4, 8, 16, 32, 64]


def test_the_whole_tree_can_be_read_by_others(affine: Exported, tmp_path: Path) -> None:
    """Staging directories are private; what is published must not be."""
    publish(affine, tmp_path)
    os.umask(umask := os.umask(0))
    for path in (tmp_path / "small").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask


def test_versions_count_up_and_are_never_overwritten(affine: Exported, tmp_path: Path) -> None:
    assert [publish(affine, tmp_path).name for _ in range(2)] == ["1", "2"]
    assert publish(affine, tmp_path, version=7).name == "7"
    assert publish(affine, tmp_path).name == "8"
    first = (tmp_path / "small" / "2" / "model.onnx").stat().st_mtime_ns
    with pytest.raises(PublishError, match="version 2 of 'small' exists, and is never overwritten; 9 is free"):
        publish(affine, tmp_path, version=2)
    assert (tmp_path / "small" / "2" / "model.onnx").stat().st_mtime_ns == first


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "-x", "ä", "x" * 129])
def test_names_that_cannot_be(affine: Exported, name: str, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="name: expected letters"):
        publish(affine, tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_versions_start_at_one(affine: Exported, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="version: expected a number of at least 1, got 0"):
        publish(affine, tmp_path, version=0)


def test_a_repository_that_is_a_file(affine: Exported, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PublishError, match="file is not a directory"):
        publish(affine, tmp_path / "file")


def test_what_an_operator_tuned_stays(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    path = tmp_path / "small" / "config.pbtxt"
    tuned = path.read_text().replace("count: 1", "count: 3")
    path.write_text(tuned)
    publish(affine, tmp_path)
    assert path.read_text() == tuned
    assert read_config(path.parent).instance_group[0].count == 3


def test_a_new_version_keeps_the_published_batch_size(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path, max_batch_size=9)
    with draft(tmp_path, "small") as entry:
        assert entry.configure(affine.contract, None).max_batch_size == 9


def test_the_configuration_tells_a_gateway_what_the_outputs_mean(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    config = read_config(tmp_path / "small")
    assert metadata_of_config(config) == affine.contract.metadata
    with pytest.raises(PublishError, match="the transform in its parameter 'stn' is affine, the new version's is sim"):
        publish(exported("similarity"), tmp_path)


def test_a_new_version_must_keep_what_callers_rely_on(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    with pytest.raises(PublishError, match="its max_batch_size is 64, the new version's is 8; use another name"):
        publish(affine, tmp_path, max_batch_size=8)
    with pytest.raises(PublishError, match=r"its input is .* dims: 1, the new version's is .* dims: 3;"):
        publish(exported("colour"), tmp_path)
    with pytest.raises(PublishError, match=r"its output is .*theta.*, the new version's is name: \"logits\"[^,]*;"):
        publish(exported("none"), tmp_path)
    (tmp_path / "small" / "labels.txt").write_text("ant\nbee\ndog\n")
    with pytest.raises(PublishError, match=r"labels.txt are not the labels of the new version"):
        publish(affine, tmp_path)
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["1", "config.pbtxt", "labels.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_broken_published_configuration_is_named(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    (tmp_path / "small" / "config.pbtxt").write_text("max_batch: 3")
    with pytest.raises(ConfigurationError, match=r'no field named "max_batch"'):
        publish(affine, tmp_path)


def test_nothing_is_seen_before_it_is_whole(affine: Exported, tmp_path: Path) -> None:
    with draft(tmp_path, "small") as entry:
        write(entry, affine)
        with pytest.raises(ConfigurationError, match="holds no model"):
            model_directories(tmp_path)
        entry.publish()
        assert sorted(path.name for path in (tmp_path / "small").iterdir()) == ["1", "config.pbtxt", "labels.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("published", [0, 1])
def test_what_fails_leaves_no_trace(affine: Exported, published: int, tmp_path: Path) -> None:
    for _ in range(published):
        publish(affine, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle(affine, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_no_trace(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match="File too large"), files_of_at_most(1000), draft(tmp_path, "small") as entry:
        write(entry, affine)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_killed_export_is_not_served(affine: Exported, tmp_path: Path) -> None:
    publish(affine, tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from export.repository import draft\n"
        "with draft(Path(sys.argv[1]), 'other') as entry: print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [directory.name for directory in model_directories(tmp_path)] == ["small"]
    assert publish(affine, tmp_path, name="other").name == "1"


@pytest.mark.parametrize("published", [0, 1])
def test_of_two_at_the_same_time_one_wins(affine: Exported, published: int, tmp_path: Path) -> None:
    for _ in range(published):
        publish(affine, tmp_path)
    with draft(tmp_path, "small") as slow:
        write(slow, affine)
        publish(affine, tmp_path)
        winner = tmp_path / "small" / str(published + 1) / "model.onnx"
        written = winner.stat().st_mtime_ns
        with pytest.raises(PublishError, match="has been published by somebody else in the meantime"):
            slow.publish()
    assert winner.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def publish(
    of: Exported,
    repository: Path,
    *,
    name: str = "small",
    version: int | None = None,
    max_batch_size: int | None = None,
) -> Path:
    with draft(repository, name, version) as entry:
        write(entry, of, max_batch_size)
        return entry.publish()


def write(entry: Draft, of: Exported, max_batch_size: int | None = None) -> None:
    entry.configure(of.contract, max_batch_size)
    onnx.save(of.model, entry.version_directory / "model.onnx")


def fail_in_the_middle(of: Exported, repository: Path) -> None:
    with draft(repository, "small") as entry:
        write(entry, of)
        raise RuntimeError("in the middle")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
