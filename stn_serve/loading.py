"""A model's versions, loaded as its directory has them; of each that cannot be served, why.

A load never takes half a copy for a model: files that change while it reads them make it fail, and a file that is cut
off is none that ONNX Runtime accepts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.model_files import Files, model_files, version_files
from stn_serve.repository import read_config, served_versions
from stn_serve.served_model import ServedModel, Shared

logger = logging.getLogger(__name__)

UNLOADED = "unloaded"
"""The reason of what has been unloaded, as Triton gives it."""

CHANGED = "its files changed while they were read: load it again once they are complete"


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version in the repository index; without `served` it is unavailable, and `reason` says why.

    With both, a newer state of the version could not be loaded, and the one before it is still served.
    """

    name: str
    version: int | None
    """None where the configuration is too broken to tell."""
    served: ServedModel | None = None
    reason: str = ""

    @property
    def state(self) -> str:
        """As the protocol names it; nothing for a model that was never loaded."""
        if self.served:
            return "READY"
        return "UNAVAILABLE" if self.reason else ""

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded as it is now, though it should be served."""
        return self.reason not in ("", UNLOADED)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of loading a model."""

    entries: tuple[IndexEntry, ...]
    files: Files
    """Of the whole model, as they were before."""

    @property
    def failures(self) -> str:
        """Why versions could not be loaded, or nothing."""
        return "; ".join(entry.reason for entry in self.entries if entry.reason)


NOTHING = Loaded((), {})
"""Of a model that was never loaded."""


def load_model(directory: Path, serving: Mapping[int, ServedModel], shared: Shared) -> Loaded:
    """Load the versions that the policy chooses, beside what is served; a version that has not changed stays as it is.

    Where one fails, every version that is served stays. Blocks for as long as loading takes, and raises nothing.
    """
    files = model_files(directory)
    try:
        entries = _load(directory, files, serving, shared)
    except (ConfigurationError, OSError) as error:
        entries = [IndexEntry(directory.name, None, reason=_message(directory.name, error))]
    return Loaded(tuple(_with_survivors(directory.name, entries, serving)), files)


def _load(directory: Path, files: Files, serving: Mapping[int, ServedModel], shared: Shared) -> list[IndexEntry]:
    config = read_config(directory)
    versions = served_versions(directory, config)
    return [
        _load_version(directory, version, config, version_files(files, version), serving, shared)
        for version in versions
    ]


def _load_version(
    directory: Path,
    version: int,
    config: ModelConfig,
    files: Files,
    serving: Mapping[int, ServedModel],
    shared: Shared,
) -> IndexEntry:
    current = serving.get(version)
    if current and current.files == files:
        return IndexEntry(directory.name, version, current)
    try:
        served = ServedModel.load(directory, version, config, files, shared, current)
    except (ConfigurationError, OSError) as error:
        return IndexEntry(directory.name, version, reason=_message(directory.name, error))
    if version_files(model_files(directory), version) != files:
        return IndexEntry(directory.name, version, reason=f"model '{directory.name}' version {version}: {CHANGED}")
    return IndexEntry(directory.name, version, served)


def _with_survivors(name: str, entries: list[IndexEntry], serving: Mapping[int, ServedModel]) -> list[IndexEntry]:
    """Where a version has failed, what is served goes on, whether or not the policy still chooses it."""
    if all(entry.served for entry in entries):
        return entries
    merged = {entry.version: entry for entry in entries}
    general = merged.pop(None, None) if serving else None
    for version, served in serving.items():
        entry = merged.get(version, general)
        if entry is None or not entry.served:
            merged[version] = IndexEntry(name, version, served, entry.reason if entry else "")
    return sorted(merged.values(), key=lambda entry: entry.version or 0)


def _message(name: str, error: ConfigurationError | OSError) -> str:
    if isinstance(error, OSError):
        return f"model '{name}': its files cannot be read: {error.strerror or error}"
    return str(error)
