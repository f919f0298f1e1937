"""The models that are served: each version with its batcher and its statistics, and why others are not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.batcher import Answer, Batcher, BatchingPolicy
from stn_serve.errors import ConfigurationError, InvalidRequest, NotFound, ServingError, Unsupported
from stn_serve.model import Model
from stn_serve.repository import model_directories, read_config, served_versions
from stn_serve.session import instance_count
from stn_serve.statistics import Statistics
from stn_serve.validation import InferRequest, ValidRequest, validate
from stn_serve.warmup import warm_up

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer."""

    model: Model
    batcher: Batcher
    statistics: Statistics
    load_s: float
    """Seconds that loading and warm-up took."""

    @classmethod
    def load(cls, directory: Path, version: int, config: ModelConfig) -> Self:
        """Load and warm up one version.

        Raises:
            ConfigurationError: it cannot be served; says why.
        """
        started = time.perf_counter()
        model = Model.load(directory, version, config)
        warm_up(model, directory)
        statistics = Statistics()
        policy = BatchingPolicy.from_config(config)
        batcher = Batcher(model.name, model.run, policy, statistics, instance_count(config))
        return cls(model, batcher, statistics, time.perf_counter() - started)

    async def infer(self, request: InferRequest) -> Answer:
        """Validate, queue, run and count one tensor request."""
        with self.counting_failures():
            return await self.run(validate(request, self.model), request.timeout_us)

    async def run(self, request: ValidRequest, timeout_us: int = 0) -> Answer:
        """Queue and run one request, and count it if it succeeds."""
        started_ns = time.perf_counter_ns()
        answer = await self.batcher.infer(request.inputs, request.outputs, request.rows, timeout_us)
        elapsed_ns = time.perf_counter_ns() - started_ns
        self.statistics.record_success(request.rows, elapsed_ns, answer.queue_ns, answer.phases)
        return answer

    @contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Count the request that fails inside."""
        started_ns = time.perf_counter_ns()
        try:
            yield
        except ServingError as error:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, error.failure_reason)
            raise
        except asyncio.CancelledError:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, "CANCELED")
            raise


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A version in the repository index; without `served` it is unavailable, and `reason` says why."""

    name: str
    version: int | None
    """None where the configuration is too broken to tell."""
    served: ServedModel | None = None
    reason: str = ""


class ModelRegistry:
    """What the server has, by name and version.

    A version that is replaced or unloaded is only forgotten: requests that have found it finish with it, and the last
    of them frees it.
    """

    def __init__(self, repository: Path, models: Mapping[str, Sequence[IndexEntry]], controlled: bool = False) -> None:
        self._repository = repository
        self._models = dict(models)
        self._served = {name: _by_version(entries) for name, entries in models.items()}
        self._controlled = controlled
        self._loading = asyncio.Lock()
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, when models come or go."""

    @classmethod
    def load(cls, repository: Path, controlled: bool = False) -> Self:
        """Load every model of a repository; a broken one is named in the index and does not hinder the others.

        Args:
            repository: See `repository`.
            controlled: Whether clients may load and unload models.

        Raises:
            ConfigurationError: there is no model, or none that can be served.
        """
        models = {directory.name: load_versions(directory) for directory in model_directories(repository)}
        entries = [entry for versions in models.values() for entry in versions]
        if not any(entry.served for entry in entries):
            raise ConfigurationError(f"no model of {repository} can be served: {_reasons(entries)}")
        for entry in entries:
            if not entry.served:
                logger.error("model '%s' is not served: %s", entry.name, entry.reason)
        return cls(repository, models, controlled)

    @property
    def index(self) -> list[IndexEntry]:
        """Every version of every model, served or not."""
        return [entry for versions in self._models.values() for entry in versions]

    def __iter__(self) -> Iterator[ServedModel]:
        return (served for versions in self._served.values() for served in versions.values())

    def knows(self, name: str) -> bool:
        """Whether there is such a model, ready or not."""
        return name in self._models

    def find(self, name: str, version: str = "") -> ServedModel:
        """A version that is ready; of none in particular, the newest.

        Raises:
            NotFound: no such model or version, or it is not ready.
            InvalidRequest: the version is not a number.
        """
        unknown = f"Request for unknown model: '{name}'"
        versions = self._served.get(name)
        if versions is None:
            raise NotFound(f"{unknown} is not found")
        if not version:
            if not versions:
                raise NotFound(f"{unknown} has no available versions; the repository index says why")
            return versions[max(versions)]
        served = versions.get(parse_version(version))
        if served is None:
            raise NotFound(f"{unknown} version {version} is not found")
        return served

    def find_all(self, name: str) -> list[ServedModel]:
        """Every version of a model that is ready, oldest first.

        Raises:
            NotFound: no such model, or none of its versions is ready.
        """
        self.find(name)
        return [served for _, served in sorted(self._served[name].items())]

    async def load_model(self, name: str) -> None:
        """Load a model as the repository has it now, beside what is served, and then put it in its place.

        Raises:
            Unsupported: clients may not do so.
            NotFound: the repository has no such model.
            InvalidRequest: no version of it can be served; what was served still is.
        """
        self._check_controlled()
        async with self._loading:
            entries = await asyncio.to_thread(load_versions, self._directory(name))
            if not any(entry.served for entry in entries):
                raise InvalidRequest(f"load failed for model '{name}': {_reasons(entries)}")
            self._replace(name, entries)

    async def unload_model(self, name: str) -> None:
        """Serve a model no more.

        Raises:
            Unsupported: clients may not do so.
            NotFound: there is no such model.
        """
        self._check_controlled()
        async with self._loading:
            if name not in self._models:
                raise NotFound(f"failed to unload '{name}', no such model")
            self._replace(name, [IndexEntry(name, entry.version, reason="unloaded") for entry in self._models[name]])

    def announce(self) -> None:
        """Wake who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    async def close(self) -> None:
        """Finish what is queued."""
        await asyncio.gather(*(served.batcher.close() for served in self))

    def _check_controlled(self) -> None:
        if not self._controlled:
            raise Unsupported(
                "explicit model load / unload is not allowed; the server's operator allows it with a model control mode"
            )

    def _directory(self, name: str) -> Path:
        # Looked up, not joined: a name must not lead out of the repository.
        for directory in model_directories(self._repository):
            if directory.name == name:
                return directory
        raise NotFound(f"failed to load '{name}', failed to poll from model repository")

    def _replace(self, name: str, entries: Sequence[IndexEntry]) -> None:
        self._models[name] = entries
        self._served[name] = _by_version(entries)
        logger.info("model '%s' now has versions %s", name, sorted(self._served[name]) or "none")
        self.announce()


def parse_version(version: str) -> int:
    """A version of the protocol as a number.

    Raises:
        InvalidRequest: it is not one above 0.
    """
    if not (version.isascii() and version.isdecimal() and int(version[:20]) > 0):
        raise InvalidRequest(
            f"failed to get model version from specified version string '{version}', "
            "version should be an integral value > 0"
        )
    return int(version[:20])


def load_versions(directory: Path) -> list[IndexEntry]:
    """Load what a model's directory holds, and say of each version that cannot be served why."""
    try:
        config = read_config(directory)
        versions = served_versions(directory, config)
    except ConfigurationError as error:
        return [IndexEntry(directory.name, None, reason=str(error))]
    return [_load_version(directory, version, config) for version in versions]


def _load_version(directory: Path, version: int, config: ModelConfig) -> IndexEntry:
    try:
        return IndexEntry(directory.name, version, ServedModel.load(directory, version, config))
    except ConfigurationError as error:
        return IndexEntry(directory.name, version, reason=str(error))


def _by_version(entries: Sequence[IndexEntry]) -> dict[int, ServedModel]:
    return {entry.served.model.version: entry.served for entry in entries if entry.served}


def _reasons(entries: Sequence[IndexEntry]) -> str:
    return "; ".join(entry.reason for entry in entries)
