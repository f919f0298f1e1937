"""Tensors as the Open Inference Protocol carries them (raw bytes, typed contents, JSON), and as numpy arrays.

Convention:
    Raw bytes are little endian and row by row, as numpy holds them. A `BYTES` element is a 4-byte length and its data;
    in memory it is a `str` in an object array, because ONNX strings are UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.service_pb2 import InferTensorContents

Array = NDArray[Any]
Buffer = bytes | bytearray | memoryview

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""The protocol's datatypes that a model may have. BF16 is missing: numpy has no such type."""

_OF_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

_WIDEST = {"i": np.int64, "u": np.uint64}

_JSON_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "O": "U"}
"""By kind of the tensor's dtype: the kinds of array that its JSON may become."""


def datatype_of_onnx(onnx_type: str) -> str | None:
    """`tensor(uint8)` as `UINT8`; None for what the protocol cannot carry."""
    return _OF_ONNX.get(onnx_type)


def datatype_of_config(data_type: int) -> str:
    """A `DataType` of `config.pbtxt` as the protocol spells it."""
    name = str(model_config_pb2.DataType.Name(data_type)).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def byte_size(datatype: str, shape: Sequence[int]) -> int | None:
    """Bytes of a raw tensor; None for BYTES, whose elements differ in size."""
    return None if datatype == "BYTES" else prod(shape) * DATATYPES[datatype].itemsize


def from_raw(data: Buffer, datatype: str, shape: Sequence[int]) -> Array:
    """Raw bytes of the right size as an array: a read-only view where the datatype allows it.

    Raises:
        ValueError: BYTES that are cut off, not UTF-8, or not as many as the shape has elements.
    """
    if datatype != "BYTES":
        return np.frombuffer(data, DATATYPES[datatype]).reshape(shape)
    return _strings(list(_elements(memoryview(data))), shape)


def to_raw(array: Array) -> bytes:
    """An array as raw bytes."""
    if array.dtype != object:
        return array.tobytes()
    encoded = [str(element).encode() for element in array.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def from_contents(contents: InferTensorContents, datatype: str) -> Array:
    """The typed contents of a gRPC tensor as a flat array.

    Raises:
        ValueError: they are in the field of another datatype, or out of its range.
    """
    expected = _CONTENTS.get(datatype, "raw_input_contents")
    filled = [field.name for field, _ in contents.ListFields()]
    if filled != [expected]:
        raise ValueError(f"contents of {datatype} are in {', '.join(filled)}, expected {expected}")
    values = getattr(contents, expected)
    dtype = DATATYPES[datatype]
    if datatype == "BYTES":
        return _strings(values, (len(values),))
    if dtype.kind in "fb":
        # They lie packed at the end of the message; reading them one by one would take a hundred times longer.
        serialized = contents.SerializeToString()
        return np.frombuffer(serialized, dtype, offset=len(serialized) - len(values) * dtype.itemsize)
    return _in_range(np.fromiter(values, _WIDEST[dtype.kind], len(values)), datatype)


def from_json(data: object, datatype: str, shape: Sequence[int]) -> Array:
    """A JSON `data` field, nested or flat, as an array.

    Raises:
        ValueError: ragged, of another type, out of range, or of another shape.
    """
    dtype = DATATYPES[datatype]
    if not isinstance(data, list):
        raise ValueError("expected an array")  # noqa: TRY004 - one error for all that is wrong with the data
    values = np.array(data)
    if dtype == np.uint64 and values.size and values.dtype.kind == "f":
        values = _large_integers(data, values)
    if values.size and values.dtype.kind not in _JSON_KINDS[dtype.kind]:
        raise ValueError(f"expected elements of {datatype}")
    if values.size != prod(shape) or (values.ndim > 1 and values.shape != tuple(shape)):
        raise ValueError(f"shape {list(shape)} does not match the true shape {list(values.shape)}")
    return (values.astype(object) if datatype == "BYTES" else _in_range(values, datatype)).reshape(shape)


def to_json(array: Array) -> Array | list[Any]:
    """An array as orjson serialises it: flat."""
    flat = np.ascontiguousarray(array).ravel()
    if flat.dtype == object:
        return flat.tolist()
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def _large_integers(data: list[Any], rounded: Array) -> Array:
    """What numpy makes floats of because some lie above the largest INT64; `rounded` where they are no integers."""
    exact = np.array(data, object)
    if not all(type(value) is int for value in exact.flat):
        return rounded
    if exact.min() < 0:
        raise ValueError("element out of the range of UINT64")
    return exact.astype(np.uint64)


def _in_range(values: Array, datatype: str) -> Array:
    dtype = DATATYPES[datatype]
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    exact = np.isfinite(converted).all() if dtype.kind == "f" else (converted == values).all()
    if not exact:
        raise ValueError(f"element out of the range of {datatype}")
    return converted


def _elements(data: memoryview) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        start = offset + 4
        end = start + int.from_bytes(data[offset:start], "little")
        if start > len(data) or end > len(data):
            raise ValueError(f"BYTES element at byte {offset} is cut off")
        yield bytes(data[start:end])
        offset = end


def _strings(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    if len(elements) != prod(shape):
        raise ValueError(f"expected {prod(shape)} BYTES elements, got {len(elements)}")
    strings = np.empty(len(elements), object)
    try:
        strings[:] = [element.decode() for element in elements]
    except UnicodeDecodeError as error:
        raise ValueError(f"BYTES element is not UTF-8: {error}") from error
    return strings.reshape(shape)
