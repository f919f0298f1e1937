"""Models come, change and go with the files of the repository: `--model-control-mode poll`.

There is no telling when a copy is complete, so a change is only acted upon once it has settled: two looks, a second
apart, must see the same files. A copy that stalls for longer is caught later: what is cut off does not load, what
changes while it is read is thrown away, both leave the old version serving, and when the copy goes on, so does this.
Who moves a finished directory into its place (as `stn export` does) need not rely on any of that.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from stn_serve.errors import ConfigurationError
from stn_serve.model_files import Files, model_files
from stn_serve.registry import ModelRegistry
from stn_serve.repository import find_models

logger = logging.getLogger(__name__)

SETTLE_S = 1.0
"""How long files must have been the same before they are loaded."""


async def poll(registry: ModelRegistry, repository: Path, interval_s: float) -> None:
    """Follow the changes of a repository until cancelled."""
    poller = Poller(registry, repository)
    while True:
        await asyncio.sleep(interval_s)
        try:
            await poller.look()
        except Exception:
            logger.exception("a look at the model repository failed; the next one follows")


class Poller:
    """Holds the repository against what was loaded from it."""

    def __init__(self, registry: ModelRegistry, repository: Path, settle_s: float = SETTLE_S) -> None:
        self._registry = registry
        self._repository = repository
        self._settle_s = settle_s
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def look(self) -> None:
        """Begin to load what has changed and settled, and forget what has gone. A long load holds up no other."""
        seen = await self._files()
        if seen is None or not self._differing(seen):
            return
        await asyncio.sleep(self._settle_s)
        settled = await self._files()
        if settled is None:
            return
        for name in self._differing(settled):
            if seen.get(name) != settled.get(name):
                logger.info("model '%s' is changing: it is loaded once its files stay the same", name)
            elif name in settled:
                self._loads[name] = asyncio.create_task(self._load(name))
            else:
                await self._registry.forget(name)

    async def finish(self) -> None:
        """Wait for the loads that have begun."""
        await asyncio.gather(*self._loads.values())

    async def _load(self, name: str) -> None:
        try:
            await self._registry.reload(self._repository / name)
        finally:
            del self._loads[name]

    def _differing(self, files: dict[str, Files]) -> list[str]:
        """The models that are not as they were when they were last loaded, other than those that are being loaded."""
        loaded = self._registry.files
        names = sorted(files.keys() | loaded.keys())
        return [name for name in names if files.get(name) != loaded.get(name) and name not in self._loads]

    async def _files(self) -> dict[str, Files] | None:
        """The files of every model; None where the repository cannot be read, which is no reason to serve less."""
        try:
            return await asyncio.to_thread(_scan, self._repository)
        except ConfigurationError as error:
            logger.warning("%s: what is served stays", error)
            return None


def _scan(repository: Path) -> dict[str, Files]:
    return {directory.name: model_files(directory) for directory in find_models(repository)}
