"""Room for messages that are larger than a stream's window: some at the same time, the others one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn_serve.h2_stream import Stream


class Reservations:
    """Of one connection."""

    def __init__(self, max_bytes: int) -> None:
        """Reserve so much at the same time; one message is let in however large it is."""
        self._max_bytes = max_bytes
        self._reserved = 0
        self._waiting: dict[Stream, int] = {}

    def reserve(self, stream: Stream, amount: int) -> None:
        """Let so much more in, when there is room for it."""
        self._waiting[stream] = amount
        self._admit()

    def release(self, amount: int) -> None:
        """A large message has been read, or is not wanted any more."""
        self._reserved -= amount
        self._admit()

    def forget(self, stream: Stream) -> None:
        """It waits for nothing any more; whoever stood behind it may fit."""
        if self._waiting.pop(stream, None) is not None:
            self._admit()

    def keeps_waiting(self, stream: Stream) -> bool:
        """Whether there has been no room for it yet."""
        return stream in self._waiting

    def _admit(self) -> None:
        for stream, amount in list(self._waiting.items()):
            if self._reserved and self._reserved + amount > self._max_bytes:
                return
            del self._waiting[stream]
            self._reserved += amount
            stream.reserved(amount)
