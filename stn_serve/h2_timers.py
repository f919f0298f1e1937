"""How long a connection of HTTP/2 waits for its peer: for settings and headers, to be read, for a sign of life."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar


class Timers:
    """Of one connection, from its begin to its end."""

    HEAD_S: ClassVar[float] = 30.0
    """From the connection's start to the caller's settings, and from the first to the last frame of headers."""
    READ_S: ClassVar[float] = 30.0
    """How long a caller may read nothing of what waits for it in this process's memory."""
    KEEPALIVE_S: ClassVar[float] = 60.0
    """After so long without a word a caller is asked whether it is there."""
    ANSWER_S: ClassVar[float] = 20.0
    """What it gets to answer that."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], ping: Callable[[], None]) -> None:
        """Watch a connection.

        Args:
            transport: Its bytes; aborted if the peer does not read, or is gone.
            close: Ends a connection whose peer does not come to the point.
            ping: Asks the peer for a sign of life.
        """
        self._transport = transport
        self._close = close
        self._ping = ping
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        self._head: asyncio.TimerHandle | None = None
        self._read: asyncio.TimerHandle | None = None
        self._end: asyncio.TimerHandle | None = None
        self._alive: asyncio.TimerHandle | None = self._loop.call_later(self.KEEPALIVE_S, self._keep_alive)

    def stop(self) -> None:
        """The connection has ended."""
        for timer in (self._head, self._read, self._alive, self._end):
            if timer:
                timer.cancel()
        self._head = self._read = self._alive = self._end = None
        # They are the connection's, which holds this: together they would wait for the garbage collector.
        self._close = self._ping = _nothing

    def heard(self) -> None:
        """The peer has sent something."""
        self._heard_s = self._loop.time()

    @property
    def awaits_head(self) -> bool:
        """Whether settings, or the rest of some headers, are still to come."""
        return self._head is not None

    def await_head(self) -> None:
        """They must come in time."""
        self.stop_head()
        self._head = self._loop.call_later(self.HEAD_S, self._close)

    def stop_head(self) -> None:
        """They have come."""
        if self._head:
            self._head.cancel()
            self._head = None

    def await_read(self) -> None:
        """The peer must read something of what waits for it."""
        unread_bytes = self._transport.get_write_buffer_size()
        self._read = self._loop.call_later(self.READ_S, self._check_read, unread_bytes)

    def stop_read(self) -> None:
        """It has read nearly all."""
        if self._read:
            self._read.cancel()

    def await_end(self) -> None:
        """It must read the rest, and hang up."""
        self._end = self._loop.call_later(self.READ_S, self._transport.abort)

    def _check_read(self, unread_bytes: int) -> None:
        if self._transport.get_write_buffer_size() < unread_bytes:
            self.await_read()
        else:
            self._transport.abort()

    def _keep_alive(self) -> None:
        left_s = self._heard_s + self.KEEPALIVE_S - self._loop.time()
        if left_s > 0:
            self._alive = self._loop.call_later(left_s, self._keep_alive)
        else:
            self._ping()
            self._alive = self._loop.call_later(self.ANSWER_S, self._check_alive, self._heard_s)

    def _check_alive(self, heard_s: float) -> None:
        if self._heard_s == heard_s:
            self._transport.abort()
        else:
            self._keep_alive()


def _nothing() -> None:
    pass
