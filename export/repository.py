"""A version of a model in a repository that both `stn serve` and Triton read, published whole or not at all.

NAME/config.pbtxt            the serving configuration, shared by all versions
NAME/labels.txt
NAME/VERSION/model.onnx
NAME/VERSION/parity.json     how far it is from PyTorch
NAME/VERSION/parity.png      the same to look at
NAME/VERSION/provenance.json where it comes from
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from google.protobuf import text_format
from google.protobuf.json_format import ParseDict
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.graph_contract import GraphContract
from export.targets import Target, engine_of
from stn_serve.config_rules import CONFIG_FILE
from stn_serve.metadata import METADATA_KEY, InputImage, ModelMetadata
from stn_serve.repository import BACKEND, read_config
from stn_serve.signature import metadata_of_config

LABELS_FILE = "labels.txt"
MODEL_FILE = "model.onnx"
STAGING = ".staging-"
"""Prefix of the directory in the repository where an entry is prepared; servers pass over hidden directories."""

DEFAULT_MAX_BATCH_SIZE = 64
DEFAULT_BATCH_VALUES = 2**23
"""Of all images in a batch: with 64 photos of 448 pixels a side, activations alone would take gigabytes."""
HEADER = "# Written once by `stn export`, read by `stn serve` and Triton alike; yours to tune."
QUEUED_BATCHES = 16
"""Requests that may wait, in full batches: more would only wait longer."""


class PublishError(ValueError):
    """A model or version that cannot be published under this name or number; says why."""


def default_max_batch_size(image: InputImage) -> int:
    """64, or the power of two of larger images that keeps a batch within `DEFAULT_BATCH_VALUES`."""
    affordable = max(1, DEFAULT_BATCH_VALUES // (image.height * image.width * image.channels))
    return min(DEFAULT_MAX_BATCH_SIZE, 1 << (affordable.bit_length() - 1))


def model_config(name: str, contract: GraphContract, max_batch_size: int, target: Target | None = None) -> ModelConfig:
    """The configuration of a new model for Triton's onnxruntime backend, which `stn serve` reads as well."""
    image = contract.metadata.input
    dims = [image.height, image.width, image.channels]
    noise = {"data_type": "TYPE_UINT8", "dims": dims, "random_data": True}
    fields = {
        "name": name,
        "backend": BACKEND,
        "max_batch_size": max_batch_size,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": dims}],
        "output": [_output(output, dims) for output, dims in contract.outputs.items()],
        # Triton shows clients its configuration, and nothing of the ONNX file: this is how a gateway learns the rest.
        "parameters": {METADATA_KEY: {"string_value": contract.metadata.to_json()}},
        **(target or Target()).configuration(contract, max_batch_size),
        "dynamic_batching": {
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "allow_timeout_override": True,
                "max_queue_size": QUEUED_BATCHES * max_batch_size,
            }
        },
        "model_warmup": [
            {"name": f"batch_{batch}", "batch_size": batch, "inputs": {"image": noise}}
            for batch in _buckets(max_batch_size)
        ],
    }
    return ParseDict(fields, ModelConfig())


def _buckets(largest: int) -> list[int]:
    """1, 2, 4, ... and the largest: runtimes prepare for sizes of a batch when they first see them."""
    return sorted({2**power for power in range(largest.bit_length()) if 2**power < largest} | {largest})


def _output(name: str, dims: Sequence[int]) -> dict[str, object]:
    labels = {"label_filename": LABELS_FILE} if name == "logits" else {}
    return {"name": name, "data_type": "TYPE_FP32", "dims": list(dims), **labels}


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A version in preparation: a model's whole directory, out of sight of servers."""

    directory: Path
    """Has the model's name; a server's code can load it."""
    version: int
    destination: Path
    """The model's directory in the repository."""
    is_new: bool
    """Whether the repository had no such model when the draft was begun."""

    @property
    def version_directory(self) -> Path:
        """Where the model and what belongs to it are written."""
        return self.directory / str(self.version)

    def configure(
        self, contract: GraphContract, max_batch_size: int | None, target: Target | None = None
    ) -> ModelConfig:
        """Write configuration and labels: the published ones of a model that has them, else new ones.

        Args:
            contract: of the graph.
            max_batch_size: None takes the published model's, or `default_max_batch_size`.
            target: None takes what the published model runs on, or the CPU.

        Raises:
            PublishError: the published configuration or labels do not fit the new version.
            ConfigurationError: the published configuration cannot be read.
        """
        labels = "".join(f"{label}\n" for label in contract.metadata.labels)
        if not self.is_new:
            published = read_config(self.destination)
            wanted = model_config(self.directory.name, contract, max_batch_size or published.max_batch_size)
            _check_agreement(published, wanted, self.destination, labels)
            if target and target.engine != engine_of(published):
                raise PublishError(
                    f"{self.destination / CONFIG_FILE} runs on {engine_of(published)}, and the new version is for "
                    f"{target.engine}; use another name"
                )
            for name in (CONFIG_FILE, LABELS_FILE):
                shutil.copy(self.destination / name, self.directory)
        else:
            largest = max_batch_size or default_max_batch_size(contract.metadata.input)
            wanted = model_config(self.directory.name, contract, largest, target)
            (self.directory / CONFIG_FILE).write_text(f"{HEADER}\n{text_format.MessageToString(wanted)}")
            (self.directory / LABELS_FILE).write_text(labels, encoding="utf-8")
        return read_config(self.directory)

    def publish(self) -> Path:
        """Move it into the repository in one step; the new version's directory.

        Raises:
            PublishError: somebody else has published the model or the version in the meantime.
        """
        published = self.destination / str(self.version)
        source, target = (self.directory, self.destination) if self.is_new else (self.version_directory, published)
        _sync(source)
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise PublishError(f"{target} has been published by somebody else in the meantime") from error
            raise
        _sync_directory(target.parent)
        return published


@contextmanager
def draft(repository: Path, name: str, version: int | None = None) -> Iterator[Draft]:
    """Prepare a version of a model inside the repository's file system; what is not published leaves no trace.

    Args:
        repository: made where it is missing.
        name: of the model.
        version: a free one; by default the one after the newest.

    Raises:
        PublishError: a name or version that cannot be, or that is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
        raise PublishError(f"name: expected letters, digits, '.', '_' and '-' after a letter or digit, got {name!r}")
    if repository.exists() and not repository.is_dir():
        raise PublishError(f"repository: {repository} is not a directory")
    destination = repository / name
    is_new = not destination.exists()
    number = _free_version(destination, version)
    repository.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=repository) as staging:
        directory = Path(staging) / name
        (directory / str(number)).mkdir(parents=True)
        yield Draft(directory=directory, version=number, destination=destination, is_new=is_new)


def _free_version(destination: Path, version: int | None) -> int:
    names = [path.name for path in destination.iterdir()] if destination.is_dir() else []
    following = max((int(name) for name in names if name.isdecimal()), default=0) + 1
    if version is None:
        return following
    if version < 1:
        raise PublishError(f"version: expected a number of at least 1, got {version}")
    if str(version) in names:
        raise PublishError(
            f"version {version} of '{destination.name}' exists, and is never overwritten; {following} is free"
        )
    return version


def _check_agreement(published: ModelConfig, wanted: ModelConfig, destination: Path, labels: str) -> None:
    """What callers of the published model rely on must hold for the new version; the rest is its operator's."""
    for field in ("max_batch_size", "input", "output"):
        if getattr(published, field) != getattr(wanted, field):
            raise PublishError(
                f"{destination / CONFIG_FILE} does not fit the new version: its {field} is "
                f"{_one_line(published, field)}, the new version's is {_one_line(wanted, field)}; use another name"
            )
    if (destination / LABELS_FILE).read_text(encoding="utf-8") != labels:
        raise PublishError(f"{destination / LABELS_FILE} are not the labels of the new version; use another name")
    _check_metadata(published, wanted, destination)


def _check_metadata(published: ModelConfig, wanted: ModelConfig, destination: Path) -> None:
    told, true = metadata_of_config(published), metadata_of_config(wanted)
    for name in [field.name for field in fields(ModelMetadata)] if told else ():
        before, now = getattr(told, name), getattr(true, name)
        if before != now:
            raise PublishError(
                f"{destination / CONFIG_FILE} does not fit the new version: the {name} in its parameter "
                f"'{METADATA_KEY}' is {before}, the new version's is {now}; use another name"
            )


def _one_line(config: ModelConfig, field: str) -> str:
    value = getattr(config, field)
    if isinstance(value, int):
        return str(value)
    return ", ".join(text_format.MessageToString(tensor, as_one_line=True) for tensor in value)


def _sync(directory: Path) -> None:
    """Bring a tree to the disk, so that what is published survives a power cut."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
