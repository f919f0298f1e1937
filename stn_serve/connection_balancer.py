"""Accepts the connections of several workers, and hands each to the worker that has the fewest.

Where workers listen on a shared port themselves, the kernel draws lots: of the three connections that a caller opens
all fall on one of two workers every fourth time, and stay there for as long as gRPC keeps them, which is for ever.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Collection, Mapping

from stn_serve.listening import BACKLOG
from stn_serve.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

FULL_PAUSE_S = 0.01
"""Before another try, where no worker takes a connection: each has hundreds that it has not looked at."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
EXHAUSTED_PAUSE_S = 1.0
"""Before another try, where the process or the machine has no room for a connection."""


class ConnectionBalancer:
    """Listens on bound sockets, by the protocol that is spoken there."""

    def __init__(
        self, listeners: Mapping[str, socket.socket], workers: Callable[[], Collection[WorkerProcess]]
    ) -> None:
        self._listeners = listeners
        self._workers = workers

    def listen(self) -> None:
        """Let callers connect; they wait until `run` runs."""
        for listener in self._listeners.values():
            listener.setblocking(False)
            listener.listen(BACKLOG)

    async def run(self) -> None:
        """Balance for ever."""
        await asyncio.gather(*(self._accept(*listening) for listening in self._listeners.items()))

    async def _accept(self, protocol: str, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # or its caller has gone already
                if error.errno in EXHAUSTED:
                    logger.warning("connections cannot be accepted at the moment: %s", error)
                    await asyncio.sleep(EXHAUSTED_PAUSE_S)
                continue
            with connection:
                while self._workers() and not self._hand_over(protocol, connection):
                    await asyncio.sleep(FULL_PAUSE_S)

    def _hand_over(self, protocol: str, connection: socket.socket) -> bool:
        """To one that reports, if there is such a one, and of those to the one with fewest connections."""
        by_load = sorted(self._workers(), key=lambda worker: (worker.is_late, worker.connections))
        return any(worker.take(protocol, connection) for worker in by_load)
