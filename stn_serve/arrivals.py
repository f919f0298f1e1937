"""Requests that have been let in and are still being read."""

from __future__ import annotations

import time
from typing import ClassVar


class Arrival:
    """One of them."""

    __slots__ = ("_arrivals", "lapses_s")

    def __init__(self, arrivals: Arrivals, lapses_s: float) -> None:
        self._arrivals = arrivals
        self.lapses_s = lapses_s

    def close(self) -> None:
        """It has been read, or never will be."""
        self._arrivals.discard(self)


class Arrivals:
    """They count among those that wait, or more would be let in than there is room for once they have been read.

    Not for long: a caller that is slow to send keeps nobody out. Used on one event loop.
    """

    LAPSE_S: ClassVar[float] = 0.25
    """How long one counts."""

    def __init__(self) -> None:
        self._arriving: dict[Arrival, None] = {}
        """Those that have come first are first."""

    def __len__(self) -> int:
        now_s = time.monotonic()
        while self._arriving:
            first = next(iter(self._arriving))
            if first.lapses_s > now_s:
                break
            del self._arriving[first]
        return len(self._arriving)

    def expect(self) -> Arrival:
        """One more, until it is closed."""
        arrival = Arrival(self, time.monotonic() + self.LAPSE_S)
        self._arriving[arrival] = None
        return arrival

    def discard(self, arrival: Arrival) -> None:
        """It counts no more; nothing happens if it did not."""
        self._arriving.pop(arrival, None)
