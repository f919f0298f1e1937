"""What a load generator reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Load(NamedTuple):
    """What callers saw who waited for their answers."""

    throughput: float
    """Requests a second."""
    p50_ms: float
    p99_ms: float


def quantiles(milliseconds: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    median, high = np.percentile(milliseconds, [50, 99])
    return float(median), float(high)
