"""Files that are read again when they change: certificates and tokens are replaced while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from stn_serve.errors import ConfigurationError

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Between two looks. Contents are compared, not times: mounted secrets are links whose targets are exchanged."""


class LiveFiles:
    """What `load` makes of some files, as they were when it last succeeded."""

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        """Load them.

        Raises:
            ConfigurationError: one cannot be read or used.
        """
        self._what = what
        self._paths = paths
        self._load = load
        self._seen = self._contents()
        load()

    def refresh(self) -> None:
        """Load them again if they have changed; what cannot be used leaves everything as it was."""
        contents = self._contents()
        if contents == self._seen:
            return
        self._seen = contents
        try:
            self._load()
        except ConfigurationError as error:
            logger.error("%s have changed and cannot be used, so the old ones stay: %s", self._what, error)  # noqa: TRY400 - the message says it all
        else:
            logger.info("%s have changed and are in use", self._what)

    async def watch(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await asyncio.to_thread(self.refresh)

    def _contents(self) -> list[bytes | None]:
        return [_content(path) for path in self._paths]


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
