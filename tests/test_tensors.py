from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import InferTensorContents
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from stn_serve.tensors import DATATYPES, byte_size, from_contents, from_json, from_raw, to_json, to_raw

NUMERIC = sorted(set(DATATYPES) - {"BYTES"})
CONTENTS = {"BOOL": "bool", "FP32": "fp32", "FP64": "fp64", "INT8": "int", "UINT16": "uint", "INT64": "int64"}


@st.composite
def arrays(draw: st.DrawFn, datatypes: list[str]) -> tuple[str, NDArray[Any]]:
    datatype = draw(st.sampled_from(datatypes))
    elements = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else None
    shape = stnp.array_shapes(min_dims=0, min_side=0, max_side=4)
    array = draw(stnp.arrays(DATATYPES[datatype], shape, elements=elements))
    return datatype, array


@given(arrays(NUMERIC))
def test_raw_bytes_there_and_back(case: tuple[str, NDArray[Any]]) -> None:
    datatype, array = case
    raw = to_raw(array)
    assert len(raw) == byte_size(datatype, array.shape)
    np.testing.assert_array_equal(from_raw(raw, datatype, array.shape), array)


@given(arrays(NUMERIC))
def test_json_there_and_back(case: tuple[str, NDArray[Any]]) -> None:
    datatype, array = case
    flat = to_json(array)
    assert isinstance(flat, np.ndarray)
    for data in (flat.tolist(), np.atleast_1d(array).tolist()):
        np.testing.assert_array_equal(from_json(data, datatype, array.shape), array)


@given(arrays(sorted(CONTENTS)))
def test_typed_contents_there_and_back(case: tuple[str, NDArray[Any]]) -> None:
    datatype, array = case
    values = array.ravel().tolist()
    contents = InferTensorContents(**{f"{CONTENTS[datatype]}_contents": values})
    if values:  # an empty repeated field is none at all on the wire
        np.testing.assert_array_equal(from_contents(contents, datatype), array.ravel())


@given(st.lists(st.text()))
def test_strings_travel_as_triton_packs_them(strings: list[str]) -> None:
    array = np.array(strings, object)
    packed = serialize_byte_tensor(array)
    raw = packed.item() if packed.size else b""
    assert to_raw(array) == raw
    assert from_raw(raw, "BYTES", array.shape).tolist() == strings
    assert [element.decode() for element in deserialize_bytes_tensor(raw)] == strings
    if not any(string.endswith("\0") for string in strings):  # numpy's own strings drop it
        assert from_json(strings, "BYTES", array.shape).tolist() == strings


@given(st.binary(max_size=40))
def test_any_bytes_are_strings_or_a_value_error(data: bytes) -> None:
    try:
        from_raw(data, "BYTES", (1,))
    except ValueError:
        return
    assert struct.unpack("<I", data[:4])[0] == len(data) - 4


def test_a_view_and_not_a_copy() -> None:
    raw = bytes(16)
    array = from_raw(raw, "FP32", (2, 2))
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        ([1, 2], "FP32", (3,), r"shape \[3\] does not match the true shape \[2\]"),
        ([[1], [2]], "FP32", (1, 2), r"shape \[1, 2\] does not match the true shape \[2, 1\]"),
        ([1.5], "INT32", (1,), "expected elements of INT32"),
        ([True], "INT32", (1,), "expected elements of INT32"),
        ([1], "BOOL", (1,), "expected elements of BOOL"),
        (["1"], "FP32", (1,), "expected elements of FP32"),
        ([None], "FP32", (1,), "expected elements of FP32"),
        ([{}], "BYTES", (1,), "expected elements of BYTES"),
        ([256], "UINT8", (1,), "element out of the range of UINT8"),
        ([-1], "UINT64", (1,), "element out of the range of UINT64"),
        ([1e300], "FP32", (1,), "element out of the range of FP32"),
        ([1e5], "FP16", (1,), "element out of the range of FP16"),
        (7, "FP32", (), "expected an array"),
        ([[1], [1, 2]], "FP32", (3,), "inhomogeneous"),
    ],
)
def test_json_that_does_not_fit_is_refused(data: object, datatype: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(data, datatype, shape)


@pytest.mark.parametrize(
    ("contents", "datatype", "message"),
    [
        (InferTensorContents(int_contents=[300]), "INT8", "element out of the range of INT8"),
        (InferTensorContents(int_contents=[1]), "FP32", "contents of FP32 are in int_contents, expected fp32_contents"),
        (InferTensorContents(fp32_contents=[1], int_contents=[1]), "FP32", "are in int_contents, fp32_contents"),
        (InferTensorContents(fp32_contents=[1]), "FP16", "expected raw_input_contents"),
        (InferTensorContents(bytes_contents=[b"\xff"]), "BYTES", "is not UTF-8"),
    ],
)
def test_contents_that_do_not_fit_are_refused(contents: InferTensorContents, datatype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_contents(contents, datatype)
