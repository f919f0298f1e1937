"""Connections that one process accepts and another serves: their sockets go over a pair of Unix sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 64
"""Connections taken in one turn of the event loop."""
MAX_NAME_BYTES = 16

Adopt = Callable[[str, socket.socket], Awaitable[None]]
"""Serves a connection of a protocol."""


def door() -> tuple[socket.socket, socket.socket]:
    """Both ends: of who hands over, and of who takes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def hand_over(end: socket.socket, protocol: str, connection: socket.socket) -> bool:
    """Give a connection away, of which the caller's own socket is still to be closed.

    Returns:
        False where the other end takes none: it has gone, or has not taken hundreds of earlier ones yet.
    """
    try:
        socket.send_fds(end, [protocol.encode()], [connection.fileno()])
    except OSError:
        return False
    return True


class Doorway:
    """The end of who takes, for the time of a `with`."""

    def __init__(self, end: socket.socket, adopt: Adopt) -> None:
        self._end = end
        self._adopt = adopt
        self._loop = asyncio.get_running_loop()
        self._adopting: set[asyncio.Task[None]] = set()

    def __enter__(self) -> None:
        self._loop.add_reader(self._end, self._take)

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._end)
        self._end.close()  # what has not been taken is closed with it

    def _take(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                name, descriptors, _, _ = socket.recv_fds(self._end, MAX_NAME_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:  # no file descriptor is left for one that came
                logger.exception("a connection could not be taken over")
                return
            if not name:
                self._loop.remove_reader(self._end)
                return
            for descriptor in descriptors:
                task = self._loop.create_task(self._serve(name.decode(), socket.socket(fileno=descriptor)))
                self._adopting.add(task)
                task.add_done_callback(self._adopting.discard)

    async def _serve(self, protocol: str, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await self._adopt(protocol, connection)
        except OSError as error:  # the caller has gone, or TLS has failed
            logger.debug("a connection has ended before it began: %s", error)
            connection.close()
