"""Values counted in fixed buckets: unlike quantiles, the counts of several processes and of any time add up."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import ArrayLike

from stn_serve.exposition import Buckets


class Histogram:
    """How many values lie in each bucket, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_all(self, values: ArrayLike) -> None:
        """Count many finite values at once."""
        values = np.asarray(values, np.float64).ravel()
        counts = np.bincount(np.searchsorted(self._bounds, values), minlength=len(self._counts))
        self._counts = [old + new for old, new in zip(self._counts, counts.tolist(), strict=True)]
        self._sum += float(values.sum())

    def buckets(self) -> Buckets:
        """What has been counted so far."""
        return Buckets(self._bounds, tuple(self._counts), self._sum)
