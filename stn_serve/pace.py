"""How fast a model's batches leave its queue: from that, how long a request would wait."""

from __future__ import annotations

MEMORY = 0.8
"""What each batch leaves of the weight of those before it."""


class Pace:
    """Of the latest batches, the time from one to the next while there was always something to do.

    That counts whatever holds a batch up: other instances, other models, a busy machine. Before the first batch has
    ended the pace is unknown, and every wait is thought to be short.
    """

    def __init__(self) -> None:
        self._batches = 0.0
        self._elapsed_ns = 0.0
        self._busy_since_ns: int | None = None

    def work(self, now_ns: int) -> None:
        """A batch begins."""
        if self._busy_since_ns is None:
            self._busy_since_ns = now_ns

    def rest(self) -> None:
        """There is nothing to do for now: the time until the next batch begins says nothing."""
        self._busy_since_ns = None

    def finish(self, now_ns: int) -> None:
        """A batch has ended."""
        if self._busy_since_ns is not None:
            self._batches = self._batches * MEMORY + 1
            self._elapsed_ns = self._elapsed_ns * MEMORY + now_ns - self._busy_since_ns
            self._busy_since_ns = now_ns

    def skip(self, now_ns: int) -> None:
        """A batch was broken off: how long it took says nothing."""
        if self._busy_since_ns is not None:
            self._busy_since_ns = now_ns

    def seconds(self, batches: float) -> float:
        """How long so many batches will take."""
        return batches * self._elapsed_ns / self._batches / 1e9 if self._batches else 0.0
