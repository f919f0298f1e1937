"""What becomes of a model's output: the tensor itself, its best classes, or bytes in the caller's shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stn_serve.errors import InvalidRequest
from stn_serve.shared_memory import Span
from stn_serve.signature import TensorSignature
from stn_serve.tensors import to_raw
from stn_serve.validation import RequestedOutput

Array = NDArray[Any]


class OutputTensor(NamedTuple):
    """An output as its caller wants it."""

    name: str
    datatype: str
    array: Array
    span: Span | None = None
    """Where it has been written; a transport then sends no data."""


def deliver(spec: TensorSignature, array: Array, wanted: RequestedOutput) -> OutputTensor:
    """One output of a request in the form asked for.

    Raises:
        InvalidRequest: the shared memory is too small for it.
    """
    if wanted.class_count:
        return OutputTensor(spec.name, "BYTES", classify(spec, array, wanted.class_count))
    if wanted.span:
        _write(spec, array, wanted.span)
    return OutputTensor(spec.name, spec.datatype, array, wanted.span)


def classify(spec: TensorSignature, array: Array, count: int) -> Array:
    """The `count` largest elements of each row, as strings `value:index[:label]` of the shape `[rows, count]`.

    A model that does not batch has one row, and the result no batch axis.
    """
    rows = array.reshape(len(array) if spec.batched else 1, -1)
    best = [list(_best(row, spec.labels, count)) for row in rows]
    shape = (len(rows), len(best[0])) if spec.batched else (len(best[0]),)
    return np.array(best, object).reshape(shape)


def _best(row: Array, labels: Sequence[str], count: int) -> Iterator[str]:
    # The complement of an integer turns its order round without overflow.
    descending = -row if row.dtype.kind == "f" else ~row
    for index in np.argsort(descending, kind="stable")[:count].tolist():
        value = f"{row[index]:f}" if row.dtype.kind == "f" else str(row[index])
        yield f"{value}:{index}:{labels[index]}" if index < len(labels) else f"{value}:{index}"


def _write(spec: TensorSignature, array: Array, span: Span) -> None:
    raw = to_raw(array)
    if len(raw) > span.nbytes:
        raise InvalidRequest(
            f"shared memory size specified with the request for output '{spec.name}' ({span.nbytes} bytes) "
            f"should be at least {len(raw)} bytes to hold the results"
        )
    span.write(raw)
