"""How fast a model's batches leave its queue: from that, how long a request would wait."""

from __future__ import annotations

MEMORY = 0.8
"""What each batch leaves of the weight of those before it."""
EVEN = 1e-6
"""Rows whose squares spread by less than this are all the same, but for rounding."""


class Pace:
    """Of the latest batches, the time from one to the next while there was always something to do, by their rows.

    That counts whatever holds a batch up: other instances, other models, a busy machine. A batch takes a time of its
    own and one for each row, by least squares: small batches tell how long the large ones of a burst will take, and on
    a GPU, where the size hardly matters, that it does not. Before the first batch has ended the pace is unknown, and
    every wait is thought to be short.
    """

    def __init__(self) -> None:
        self._batches = self._rows = self._elapsed_ns = 0.0
        self._squares = self._products = 0.0
        """Of rows, and of rows and times."""
        self._busy_since_ns: int | None = None

    def work(self, now_ns: int) -> None:
        """A batch begins."""
        if self._busy_since_ns is None:
            self._busy_since_ns = now_ns

    def rest(self) -> None:
        """There is nothing to do for now: the time until the next batch begins says nothing."""
        self._busy_since_ns = None

    def finish(self, now_ns: int, rows: int) -> None:
        """A batch has ended."""
        if self._busy_since_ns is not None:
            took_ns = now_ns - self._busy_since_ns
            self._batches = self._batches * MEMORY + 1
            self._rows = self._rows * MEMORY + rows
            self._elapsed_ns = self._elapsed_ns * MEMORY + took_ns
            self._squares = self._squares * MEMORY + rows * rows
            self._products = self._products * MEMORY + rows * took_ns
            self._busy_since_ns = now_ns

    def skip(self, now_ns: int) -> None:
        """A batch was broken off: how long it took says nothing."""
        if self._busy_since_ns is not None:
            self._busy_since_ns = now_ns

    @property
    def usual_s(self) -> float:
        """How long a batch takes."""
        return self._elapsed_ns / self._batches / 1e9 if self._batches else 0.0

    def seconds(self, batches: int, rows: int) -> float:
        """How long so many batches will take, of so many rows together."""
        if not self._batches:
            return 0.0
        row_ns = self._row_ns()
        batch_ns = (self._elapsed_ns - row_ns * self._rows) / self._batches
        return (batches * batch_ns + rows * row_ns) / 1e9

    def _row_ns(self) -> float:
        """What each row adds to the time of its batch; unknown, and so nothing, where all were of the same size."""
        spread = self._squares * self._batches - self._rows**2
        if spread <= EVEN * self._rows**2:
            return 0.0
        slope_ns = (self._products * self._batches - self._rows * self._elapsed_ns) / spread
        return min(max(slope_ns, 0.0), self._elapsed_ns / self._rows)
