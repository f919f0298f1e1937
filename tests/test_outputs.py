from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from numpy.typing import NDArray

from stn_serve.outputs import classify
from stn_serve.signature import TensorSignature
from stn_serve.tensors import DATATYPES


def spec(datatype: str = "FP32", *, batched: bool = True, labels: tuple[str, ...] = ()) -> TensorSignature:
    return TensorSignature("logits", datatype, (-1,), batched, labels)


def test_each_row_has_its_best_first_with_value_index_and_label() -> None:
    logits = np.array([[0.25, 3, -1], [7, 7, 8]], np.float32)
    best = classify(spec(labels=("a", "b")), logits, 2)
    assert best.tolist() == [["3.000000:1:b", "0.250000:0:a"], ["8.000000:2", "7.000000:0:a"]]


def test_a_model_that_does_not_batch_has_one_row_and_no_batch_axis() -> None:
    best = classify(spec("INT32", batched=False), np.array([[1, 4], [3, 2]], np.int32), 3)
    assert best.tolist() == ["4:1", "3:2", "2:3"]


def test_what_is_not_a_number_is_the_last() -> None:
    logits = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert classify(spec(), logits, 3).tolist() == [["inf:2", "-inf:1", "nan:0"]]


@pytest.mark.parametrize("datatype", ["UINT8", "UINT64", "INT8", "INT64", "FP16", "FP64"])
@given(data=st.data())
def test_the_order_is_that_of_the_values_and_of_equal_ones_that_of_the_index(
    datatype: str, data: st.DataObject
) -> None:
    elements: dict[str, Any] = {"allow_nan": False} if datatype.startswith("FP") else {}
    row: NDArray[Any] = data.draw(stnp.arrays(DATATYPES[datatype], (1, 5), elements=elements or None))
    best = [int(entry.split(":")[1]) for entry in classify(spec(datatype), row, 9)[0]]
    assert best == sorted(range(5), key=lambda index: (-row[0, index].item(), index))
