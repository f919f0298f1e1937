"""The real Triton and the models that we export: it takes their configuration, and computes what we do with them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from python_backend import wrap
from small_networks import NETWORKS, exported, noise
from targets import Refused
from targets import Target as Server

from benchmarks.real_triton import NotAvailable, running_triton
from export.repository import draft
from export.targets import Target, TargetError
from stn_serve.model import Model
from stn_serve.repository import model_directories, read_config
from stn_serve.repository_check import check_repository

COMMITTED = Path(__file__).parents[2] / "model_repository"
NO_BACKEND = "unable to find backend library for backend 'onnxruntime'"
MAX_BATCH = 8


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of network for every engine that takes it, and the models that are committed."""
    repository = tmp_path_factory.mktemp("exported") / "repository"
    for name in NETWORKS:
        for engine in ("cpu", "cuda", "tensorrt"):
            _publish(repository, name, Target.parse(engine))
    if COMMITTED.is_dir():
        shutil.copytree(COMMITTED, repository, dirs_exist_ok=True)
    return repository


def test_our_own_check_finds_nothing(repository: Path) -> None:
    assert check_repository(repository) == []


def test_triton_takes_every_configuration_up_to_the_backend_that_it_lacks(repository: Path) -> None:
    names = [directory.name for directory in model_directories(repository)]
    with _triton(repository, []) as server:
        refused = {name: server.ask("POST", f"/v2/repository/models/{name}/load", {}) for name in names}
    assert len(names) > 2 * len(NETWORKS)
    for name, answer in refused.items():
        assert isinstance(answer, Refused), name
        assert NO_BACKEND in answer.message, (name, answer.message)


WRONG = {
    'name: "another"': "directory name must equal model name",
    "dynamic_batching { preferred_batch_size: 9 }": "preferred size must be <= max batch size",
    "dynamic_batching { priority_levels: 2 }": "default priority level must be in range [1, 2]",
    "version_policy { specific { versions: 7 } }": "at least one version must be available",
    "dynamic_baching { }": 'no field named "dynamic_baching"',
}


def test_what_triton_refuses_our_check_finds_in_the_same_words(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for index, wrong in enumerate(WRONG):
        directory = _publish(repository, "affine", Target(), f"wrong_{index}")
        config = directory / "config.pbtxt"
        kept = _without(config.read_text(), wrong.split()[0].strip(":"))
        config.write_text(f"{kept}\n{wrong}\n")
    with _triton(repository, []) as server:
        for index, words in enumerate(WRONG.values()):
            name = f"wrong_{index}"
            answer = server.ask("POST", f"/v2/repository/models/{name}/load", {})
            assert isinstance(answer, Refused), words
            assert NO_BACKEND not in answer.message, words
            problems = [finding.problem for finding in check_repository(repository, name)]
            assert any(words in problem for problem in problems), (words, problems)


def test_triton_computes_what_we_do(repository: Path, tmp_path: Path) -> None:
    """Through its Python backend, around the same files."""
    shims = tmp_path / "repository"
    chosen = [directory for directory in model_directories(repository) if not directory.name.endswith(("cuda", "rt"))]
    for directory in chosen:
        wrap(directory, shims)
    with _triton(shims, [directory.name for directory in chosen]) as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc)
        for directory in chosen:
            _compare(client, directory)
        client.close()


def _compare(client: Any, directory: Path) -> None:
    config = read_config(directory)
    model = Model.load(directory, 1, config)
    height, width, channels = model.inputs[0].dims
    for batch in (1, 2, 7):
        images = noise(batch, (channels, height, width))
        tensor = tritonclient.grpc.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        answer = client.infer(directory.name, [tensor])
        for output, ours in model.run({"image": images}).items():
            np.testing.assert_allclose(
                answer.as_numpy(output), ours, atol=1e-5 * max(1.0, float(np.abs(ours).max())), err_msg=directory.name
            )


@contextmanager
def _triton(repository: Path, models: list[str]) -> Iterator[Server]:
    """A real Triton; where there is none the test is skipped."""
    with ExitStack() as stack:
        try:
            triton = stack.enter_context(running_triton(repository, models))
        except NotAvailable as reason:
            pytest.skip(f"no real Triton here: {reason}")
        server = Server("triton", triton.grpc, triton.http, triton.metrics)
        yield server
        server.close()


def _publish(repository: Path, network: str, target: Target, name: str | None = None) -> Path:
    of = exported(network)
    name = name or f"{network.replace(' ', '_')}_{target.engine}"
    try:
        target.check(of.contract, "fp32")
    except TargetError:
        return repository / name
    with draft(repository, name) as entry:
        entry.configure(of.contract, MAX_BATCH, target)
        onnx.save(of.model, entry.version_directory / "model.onnx")
        entry.publish()
    return repository / name


def _without(text: str, field: str) -> str:
    """A configuration without one field, so that another can take its place."""
    lines, depth, skipping = [], 0, False
    for line in text.splitlines():
        starts = depth == 0 and line.startswith((f"{field} ", f"{field}:"))
        skipping = starts or (skipping and depth > 0)
        if not skipping:
            lines.append(line)
        depth += line.count("{") - line.count("}")
        if starts and depth == 0:
            skipping = False
    return "\n".join(lines)
