"""Where the rows of a batch come together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class InputBuffers:
    """The memory of one instance, which runs one batch at a time, so that the next may overwrite it.

    It grows to the largest batch and stays: fresh memory would cost a page fault for every 4 KB of every batch. ONNX
    Runtime has read it when `run` returns, and its outputs are memory of their own.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def assemble(self, requests: Sequence[Mapping[str, Array]], rows: int, padded_rows: int) -> Mapping[str, Array]:
        """The inputs of several requests, `rows` together, as one array each of `padded_rows`, the surplus zero.

        What is complete as it is, is not copied.
        """
        if len(requests) == 1 and rows == padded_rows:
            return requests[0]
        return {
            name: self._fill(name, [inputs[name] for inputs in requests], rows, padded_rows) for name in requests[0]
        }

    def _fill(self, name: str, parts: Sequence[Array], rows: int, padded_rows: int) -> Array:
        first = parts[0]
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < padded_rows or buffer.shape[1:] != first.shape[1:]:
            buffer = self._buffers[name] = np.empty((padded_rows, *first.shape[1:]), first.dtype)
        np.concatenate(parts, out=buffer[:rows])
        buffer[rows:padded_rows] = "" if first.dtype == object else 0
        return buffer[:padded_rows]
