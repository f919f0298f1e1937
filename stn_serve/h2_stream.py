"""One stream of an HTTP/2 connection: what it may receive and send (RFC 9113, sections 5.1 and 5.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stn_serve.h2_frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_WINDOW,
    BrokenStream,
    ErrorCode,
    head,
    reset,
    window_update,
)

if TYPE_CHECKING:
    from stn_serve.h2_connection import Connection

WINDOW = 64 * 1024
"""Bytes that a stream may send before anybody has asked for them: what a call that is refused costs to read."""


class Receiver(Protocol):
    """Who is told of what arrives on a stream."""

    def receive(self, data: memoryview, ended: bool) -> None:
        """More has come, and perhaps the end. `data` is valid during the call only."""

    def broken_off(self) -> None:
        """The stream is gone: nothing can be sent any more."""


class _Nobody:
    def receive(self, data: memoryview, ended: bool) -> None:
        pass

    def broken_off(self) -> None:
        pass


NOBODY: Receiver = _Nobody()
"""Receives what is not wanted."""


class Stream:
    """Opened by the peer, from its headers to the end of both directions."""

    __slots__ = (
        "_connection",
        "_drained",
        "_granted",
        "_is_closed",
        "_output",
        "_reservations",
        "_room",
        "_stall",
        "_to_send",
        "_trailers",
        "_window",
        "id",
        "is_ended",
        "receiver",
    )

    STALL_TIMEOUT_S: ClassVar[float] = 30.0
    """How long an answer may wait for its reader to read on."""

    def __init__(self, connection: Connection[Any], number: int, window: int, is_ended: bool) -> None:
        self.id = number
        self.receiver: Receiver = NOBODY
        self.is_ended = is_ended
        """Whether the peer has sent everything."""
        self._connection = connection
        self._output = connection.output
        self._reservations = connection.reservations
        self._window = window
        """What the peer lets us send."""
        self._room = WINDOW
        """What it may still send."""
        self._granted = 0
        """Of that, what was reserved for a message that is larger than the window."""
        self._to_send = memoryview(b"")
        """What waits for a window, or for the transport."""
        self._trailers: bytes | None = None
        self._drained: asyncio.Future[None] | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._is_closed = False

    # What arrives.

    def take(self, payload: memoryview, length: int, ended: bool) -> None:
        """DATA of `length` bytes with its padding.

        Raises:
            BrokenStream: more than there was room for, or after the end.
        """
        if self.is_ended:
            raise BrokenStream(ErrorCode.STREAM_CLOSED, "DATA after the end of its stream")
        self._room -= length
        if self._room < 0:
            raise BrokenStream(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than its window allows")
        self.is_ended = ended
        self.receiver.receive(payload, ended)

    def consumed(self, held: int) -> None:
        """The receiver has used up what came but for `held` bytes: so many more may come."""
        self.settle()
        missing = WINDOW - held - self._room
        if missing >= WINDOW // 2 and not self.is_ended and not self._is_closed:
            self._grant(missing)

    def settle(self) -> None:
        """The receiver has the message that it wanted."""
        if self._granted:
            granted, self._granted = self._granted, 0
            self._reservations.release(granted)

    @property
    def awaits_room(self) -> bool:
        """Whether the peer may not send what the receiver wants, until others have sent theirs."""
        return self._reservations.keeps_waiting(self)

    def want(self, missing: int) -> None:
        """The receiver waits for so many bytes more than it has: the peer may send them, window or not."""
        if missing > self._room and not self.is_ended and not self._is_closed:
            self._reservations.reserve(self, missing - self._room)

    def reserved(self, amount: int) -> None:
        """The connection lets more than the window in."""
        self._granted += amount
        self._grant(amount)

    def _grant(self, amount: int) -> None:
        self._room += amount
        self._output.write(window_update(self.id, amount))

    # What is sent.

    def answer(self, headers: bytes, data: bytes, trailers: bytes) -> None:
        """Everything at once."""
        length = len(data)
        if self._is_closed:
            return
        output = self._output
        if length > self._window or not output.takes(length):
            self.send_headers(headers)
            self._to_send = memoryview(data)
            self.end(trailers)
            return
        number = self.id
        headers = output.first(headers)
        output.window -= length
        output.write(
            b"".join(
                (
                    head(HEADERS, END_HEADERS, number, len(headers)),
                    headers,
                    head(DATA, 0, number, length),
                    data,
                    head(HEADERS, END_HEADERS | END_STREAM, number, len(trailers)),
                    trailers,
                )
            )
        )
        self._connection.answered()
        self._close()

    def send_headers(self, block: bytes) -> None:
        """Before data."""
        if not self._is_closed:
            block = self._output.first(block)
            self._output.write(head(HEADERS, END_HEADERS, self.id, len(block)) + block)

    async def send(self, data: bytes) -> None:
        """Return when the next may be sent: when this is on its way."""
        if self._is_closed:
            return
        self._to_send = memoryview(data)
        self.send_more()
        if self._to_send and not self._is_closed:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def end(self, block: bytes) -> None:
        """Trailers, or headers that are trailers as well; after what still waits."""
        self._trailers = block
        self.send_more()

    def send_more(self) -> None:
        """As much as the windows allow; who reads nothing of it for long is given up."""
        if self._is_closed:
            return
        output = self._output
        while self._to_send:
            room = min(len(self._to_send), self._window, output.room())
            if room <= 0:
                output.wait(self)
                self._await_reader()
                return
            output.write(head(DATA, 0, self.id, room), self._to_send[:room])
            self._to_send = self._to_send[room:]
            self._window -= room
            output.window -= room
            self._connection.answered()
        self._stop_stall()
        if self._drained and not self._drained.done():
            self._drained.set_result(None)
        if self._trailers is not None:
            if output.is_paused:
                output.wait(self)
                return
            block = output.first(self._trailers)
            output.write(head(HEADERS, END_HEADERS | END_STREAM, self.id, len(block)) + block)
            self._connection.answered()
            self._close()

    def _await_reader(self) -> None:
        if self._stall is None:
            loop = asyncio.get_running_loop()
            self._stall = loop.call_later(self.STALL_TIMEOUT_S, self._check_stall, len(self._to_send))

    def _check_stall(self, waiting: int) -> None:
        self._stall = None
        if len(self._to_send) < waiting:
            self._await_reader()
        else:
            self.abort(ErrorCode.CANCEL)

    def _stop_stall(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def widen(self, increment: int) -> None:
        """The peer lets us send more, or less.

        Raises:
            BrokenStream: a window that is too large.
        """
        self._window += increment
        if self._window > MAX_WINDOW:
            raise BrokenStream(ErrorCode.FLOW_CONTROL_ERROR, "a window beyond its limit")

    # The end.

    def abort(self, code: ErrorCode) -> None:
        """Tell the peer that nothing more will come, and the receiver, too."""
        if not self._is_closed:
            self._output.write(reset(self.id, code))
            self.break_off()

    def break_off(self) -> None:
        """The peer has reset it, or is gone."""
        if not self._is_closed:
            self.is_ended = True
            receiver = self.receiver
            self._close()
            receiver.broken_off()

    def _close(self) -> None:
        """Everything has been sent."""
        self._is_closed = True
        # It refers back: together they would wait for the garbage collector, with what they hold of the request.
        self.receiver = NOBODY
        if not self.is_ended:
            # What it still sends is not waited for.
            self._output.write(reset(self.id, ErrorCode.NO_ERROR))
        self._stop_stall()
        if self._drained and not self._drained.done():
            self._drained.set_result(None)
        self._to_send = memoryview(b"")
        self._reservations.forget(self)
        self.settle()
        self._connection.closed(self)
