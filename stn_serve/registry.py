"""The models of a repository: which are served, and why others are not."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, Self, TypeVar

from stn_serve.catalogue import Catalogue
from stn_serve.compute import ComputePool
from stn_serve.errors import ConfigurationError, InvalidRequest, NotFound, Unsupported
from stn_serve.limits import available_cpus
from stn_serve.loading import NOTHING, UNLOADED, IndexEntry, Loaded, load_model
from stn_serve.malloc import return_freed_memory
from stn_serve.model_files import Files
from stn_serve.niceness import give_way
from stn_serve.repository import find_models, model_directories
from stn_serve.served_model import ServedModel, Shared

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

LOADING_THREADS = 4
"""Models that are loaded at the same time."""


class ModelRegistry(Catalogue):
    """The models of a repository, loaded.

    A version that is replaced or unloaded is found no more; the requests that have found it finish with it, and then
    its memory is freed.
    """

    def __init__(
        self, repository: Path, models: Mapping[str, Loaded], shared: Shared, control_mode: str = "none"
    ) -> None:
        self._repository = repository
        self._shared = shared
        super().__init__()
        self._models = dict(models)
        self._served = {name: _by_version(loaded.entries) for name, loaded in models.items() if loaded.entries}
        self._control_mode = control_mode
        self._threads = _loading_threads()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._background: set[asyncio.Task[Any]] = set()

    @classmethod
    def load(
        cls,
        repository: Path,
        control_mode: str = "none",
        names: Sequence[str] | None = None,
        count_predictions: bool = True,
    ) -> Self:
        """Load models of a repository side by side; a broken one is named in the index and does not hinder the others.

        Args:
            repository: See `repository`.
            control_mode: Who lets models come and go: `none`, `poll` (the repository), or `explicit` (clients).
            names: Which to load; all by default.
            count_predictions: Whether models count what they answer, as `prediction_statistics` says.

        Raises:
            ConfigurationError: there is no such repository or no model of such a name, or none can be served and none
                may come.
        """
        directories = find_models(repository)
        chosen = _chosen(directories, names)
        shared = Shared(ComputePool(available_cpus()), count_predictions)
        with _loading_threads() as threads:
            results = list(threads.map(load_model, chosen, repeat({}), repeat(shared)))
        models = {directory.name: NOTHING for directory in directories}
        models |= {directory.name: loaded for directory, loaded in zip(chosen, results, strict=True)}
        registry = cls(repository, models, shared, control_mode)
        if control_mode == "none" and not any(registry):
            model_directories(repository)
            raise ConfigurationError(f"no model of {repository} can be served: {_reasons(results)}")
        for name, loaded in models.items():
            _log_failures(name, loaded)
        return registry

    @property
    def index(self) -> list[IndexEntry]:
        """Every version of every model, served or not; of a model that was never loaded just the name."""
        return [entry for name, loaded in self._models.items() for entry in loaded.entries or [IndexEntry(name, None)]]

    @property
    def ready(self) -> bool:
        """Whether any model can answer, unless none was to be loaded."""
        return any(self) or not any(entry.failed for entry in self.index)

    @property
    def computing(self) -> bool:
        """Whether a batch runs, even if nobody waits for it any more."""
        return self._shared.pool.busy

    @property
    def busy(self) -> bool:
        """Whether a load goes on, or a version that is served no more still has requests to finish."""
        return bool(self._background)

    @property
    def files(self) -> dict[str, Files]:
        """By the name of each model, what it was when it was last loaded."""
        return {name: loaded.files for name, loaded in self._models.items()}

    def knows(self, name: str) -> bool:
        """Whether there is such a model, ready or not."""
        return name in self._models

    async def look(self) -> None:
        """Note the models that have come into the repository, and those that have gone without ever being loaded."""
        try:
            names = {directory.name for directory in await asyncio.to_thread(find_models, self._repository)}
        except ConfigurationError:
            return
        self._models = {name: loaded for name, loaded in self._models.items() if loaded.entries or name in names}
        for name in sorted(names):
            self._models.setdefault(name, NOTHING)

    async def load_model(self, name: str) -> None:
        """Load a model as the repository has it now, for a client.

        Raises:
            Unsupported: clients may not do so.
            NotFound: the repository has no such model.
            InvalidRequest: a version of it cannot be served; what was served still is.
        """
        self._check_controlled()
        directory = await asyncio.to_thread(self._directory, name)
        # A client that goes away does not stop it: the model would be left as nobody has asked for.
        loaded = await asyncio.shield(self._in_background(self.reload(directory)))
        if loaded.failures:
            raise InvalidRequest(f"load failed for model '{name}': {loaded.failures}")

    async def unload_model(self, name: str) -> None:
        """Serve a model no more, for a client.

        Raises:
            Unsupported: clients may not do so.
            NotFound: there is no such model.
        """
        self._check_controlled()
        if not self.knows(name):
            raise NotFound(f"failed to unload '{name}', no such model")
        async with self._locks[name]:
            unloaded = [IndexEntry(name, entry.version, reason=UNLOADED) for entry in self._models[name].entries]
            self._replace(name, Loaded(tuple(unloaded), {}))

    async def reload(self, directory: Path) -> Loaded:
        """Load a model as its directory is now, beside what is served, and then put it in its place."""
        name = directory.name
        async with self._locks[name]:
            loaded = await asyncio.get_running_loop().run_in_executor(
                self._threads, load_model, directory, self._served.get(name, {}), self._shared
            )
            self._replace(name, loaded)
        return loaded

    async def forget(self, name: str) -> None:
        """Serve a model no more that the repository no longer has."""
        async with self._locks[name]:
            self._replace(name, NOTHING)
            del self._models[name], self._served[name]

    async def finish(self, grace_s: float) -> None:
        """As every catalogue, and wait for the requests of versions that are served no more."""
        finishing = asyncio.ensure_future(super().finish(grace_s))
        await asyncio.wait([finishing, *self._background], timeout=grace_s)

    async def close(self, grace_s: float | None = None) -> None:
        """Finish what is queued, and what is left of models that are served no more; at most for `grace_s`."""
        closing = [served.batcher.close(grace_s) for served in self]
        draining = [asyncio.wait(self._background, timeout=grace_s)] if self._background else []
        await asyncio.gather(*closing, *draining)
        self._shared.pool.close()
        self._threads.shutdown(wait=False)

    def _check_controlled(self) -> None:
        if self._control_mode != "explicit":
            raise Unsupported(
                "explicit model load / unload is not allowed; the server's operator allows it with a model control mode"
            )

    def _directory(self, name: str) -> Path:
        # Looked up, not joined: a name must not lead out of the repository.
        for directory in find_models(self._repository):
            if directory.name == name:
                return directory
        raise NotFound(f"failed to load '{name}', failed to poll from model repository")

    def _replace(self, name: str, loaded: Loaded) -> None:
        before = self._served.get(name, {})
        after = _by_version(loaded.entries)
        self._models[name], self._served[name] = loaded, after
        for version, served in before.items():
            if after.get(version) is not served:
                self._in_background(_retire(served))
        _log_failures(name, loaded)
        logger.info("model '%s' now has versions %s", name, sorted(after) or "none")
        self.announce()

    def _in_background(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _loading_threads() -> ThreadPoolExecutor:
    """Of sessions that are created in them, the threads are as nice."""
    return ThreadPoolExecutor(LOADING_THREADS, thread_name_prefix="load", initializer=give_way)


async def _retire(served: ServedModel) -> None:
    await served.drain()
    del served  # which frees it
    await asyncio.to_thread(return_freed_memory)


def _chosen(directories: Sequence[Path], names: Sequence[str] | None) -> list[Path]:
    by_name = {directory.name: directory for directory in directories}
    missing = [name for name in names or () if name not in by_name]
    if missing:
        raise ConfigurationError(f"the repository has no model '{missing[0]}', but {', '.join(by_name) or 'none'}")
    return list(directories) if names is None else [by_name[name] for name in dict.fromkeys(names)]


def _by_version(entries: Sequence[IndexEntry]) -> dict[int, ServedModel]:
    return {entry.served.model.version: entry.served for entry in entries if entry.served}


def _reasons(results: Sequence[Loaded]) -> str:
    return "; ".join(loaded.failures for loaded in results)


def _log_failures(name: str, loaded: Loaded) -> None:
    for entry in loaded.entries:
        if entry.failed:
            state = "is served as it was" if entry.served else "is not served"
            logger.error("model '%s' %s: %s", name, state, entry.reason)
