from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from stn_serve.errors import InvalidRequest, NotFound
from stn_serve.http_tensors import parse
from stn_serve.shared_memory import SharedMemory

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8)
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner), max_leaves=8
)


def sometimes(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(valid, valid, valid, anything)


tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": sometimes(st.just("image")),
        "datatype": sometimes(st.sampled_from(["FP32", "UINT8", "BYTES", "BOOL"])),
        "shape": sometimes(st.lists(st.integers(0, 3), max_size=3)),
        "data": sometimes(st.lists(st.integers(0, 9) | st.floats(0, 1), max_size=6)),
        "parameters": sometimes(
            st.fixed_dictionaries(
                {},
                optional={
                    "binary_data_size": sometimes(st.integers(0, 8)),
                    "binary_data": sometimes(st.booleans()),
                    "classification": sometimes(st.integers(-1, 3)),
                    "shared_memory_region": sometimes(st.text(max_size=2)),
                    "shared_memory_byte_size": anything,
                    "shared_memory_offset": anything,
                },
            )
        ),
    },
)
parameters = st.fixed_dictionaries({}, optional={"timeout": anything, "binary_data_output": anything})
requests = st.fixed_dictionaries(
    {"inputs": sometimes(st.lists(sometimes(tensors), max_size=2))},
    optional={
        "id": sometimes(st.text()),
        "parameters": sometimes(
            st.fixed_dictionaries({}, optional={"timeout": anything, "binary_data_output": anything})
        ),
        "outputs": sometimes(st.lists(sometimes(tensors), max_size=2)),
    },
)


@given(sometimes(requests), st.binary(max_size=12), st.sampled_from(["right", None, "0", "-1", "7", "x", "1" * 30]))
def test_any_body_is_a_request_or_is_refused(document: object, raw: bytes, header: str | None) -> None:
    encoded = orjson.dumps(document)
    try:
        asked = parse(
            "m", "", encoded + raw, str(len(encoded)) if header == "right" else header, SharedMemory(allowed=True)
        )
    except (InvalidRequest, NotFound):
        return
    assert asked.request.model_name == "m"
    assert all(isinstance(tensor.name, str) for tensor in asked.request.inputs)
