from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import IDENT_CONFIG, publish_ident

from stn_serve.input_buffers import Array, InputBuffers
from stn_serve.model import Model
from stn_serve.repository import read_config


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)[:, None]}


def assembled(buffers: InputBuffers, *requests: dict[str, Array], padded_rows: int = 0) -> Array:
    count = sum(len(request["x"]) for request in requests)
    return buffers.assemble(requests, count, padded_rows or count)["x"]


@given(st.lists(st.lists(st.lists(st.floats(width=32), min_size=1, max_size=3), min_size=1, max_size=4), max_size=6))
def test_batches_hold_the_rows_of_their_requests(batches: list[list[list[float]]]) -> None:
    buffers = InputBuffers()
    for batch in batches:
        expected = np.array([value for request in batch for value in request], np.float32)
        np.testing.assert_array_equal(assembled(buffers, *(rows(*values) for values in batch))[:, 0], expected)


def test_batches_share_memory() -> None:
    buffers = InputBuffers()
    large = assembled(buffers, rows(1, 2), rows(3))
    small = assembled(buffers, rows(4), rows(5))
    assert np.shares_memory(large, small)
    assert small[:, 0].tolist() == [4, 5]


def test_a_request_alone_is_not_copied() -> None:
    request = rows(1, 2)
    assert assembled(InputBuffers(), request) is request["x"]


def test_surplus_rows_are_zero_whatever_was_there() -> None:
    buffers = InputBuffers()
    assembled(buffers, rows(9, 9), rows(9, 9))
    assert assembled(buffers, rows(1), rows(2), padded_rows=4)[:, 0].tolist() == [1, 2, 0, 0]
    assert assembled(buffers, rows(3), padded_rows=2)[:, 0].tolist() == [3, 0]


def test_other_shapes_and_strings() -> None:
    buffers = InputBuffers()
    assembled(buffers, rows(1), rows(2))
    wide = {"x": np.ones((1, 3), np.float32)}
    assert assembled(buffers, wide, wide).shape == (2, 3)
    text = {"x": np.array([["a"]], object)}
    assert assembled(InputBuffers(), text, text, padded_rows=3).tolist() == [["a"], ["a"], [""]]


@pytest.mark.parametrize("padded_rows", [2, 4])
def test_what_onnx_runtime_has_answered_outlives_the_next_batch(tmp_path: Path, padded_rows: int) -> None:
    directory = publish_ident(tmp_path, config=IDENT_CONFIG)
    model = Model.load(directory, 1, read_config(directory))
    buffers = InputBuffers()

    def run(value: float) -> Array:
        request = {"image": np.full((1, 1, 28, 28), value, np.float32)}
        return model.run(buffers.assemble([request, request], 2, padded_rows))["logits"]

    first = run(1)
    run(2)
    assert (first[:2] == 1).all()
