from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import ident, publish
from tritonclient.grpc import service_pb2

from stn_serve.errors import InvalidRequest, NotFound
from stn_serve.grpc_tensors import parse
from stn_serve.model import Model
from stn_serve.repository import read_config
from stn_serve.scheduling import AS_CONFIGURED
from stn_serve.shared_memory import SharedMemory
from stn_serve.validation import validate

CONFIG = """max_batch_size: 8
input [{ name: "image" data_type: TYPE_FP32 dims: [1, 28, 28] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] }]"""

CONTENTS = {
    "bool_contents": st.booleans(),
    "int_contents": st.integers(-(2**31), 2**31 - 1),
    "int64_contents": st.integers(-(2**63), 2**63 - 1),
    "uint_contents": st.integers(0, 2**32 - 1),
    "uint64_contents": st.integers(0, 2**64 - 1),
    "fp32_contents": st.floats(width=32),
    "fp64_contents": st.floats(),
    "bytes_contents": st.binary(max_size=4),
}
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "priority", "classification", "triton_x", "triton_enable_empty_final_response", "mine"]
        + [f"shared_memory_{what}" for what in ("region", "offset", "byte_size")]
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "bool_param": st.booleans(),
            "int64_param": st.integers(-(2**63), 2**63 - 1),
            "uint64_param": st.integers(0, 2**64 - 1),
            "double_param": st.floats(),
            "string_param": st.text(max_size=4),
        },
    ),
    max_size=2,
)
NAMES = st.sampled_from(["image", "logits", ""])


def sometimes(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.none(), value)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """A good request with some of its parts replaced."""
    message = service_pb2.ModelInferRequest(model_name="ident", id=draw(st.text(max_size=2)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        tensor = message.inputs.add(name=draw(sometimes(NAMES)) or "image")
        tensor.datatype = draw(sometimes(st.sampled_from(["FP32", "INT8", "BYTES", "BF16", ""]))) or "FP32"
        tensor.shape.extend(draw(sometimes(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))) or [1, 1, 28, 28])
        for field in draw(sometimes(st.sets(st.sampled_from(sorted(CONTENTS)), min_size=1, max_size=2))) or ():
            getattr(tensor.contents, field).extend(draw(st.lists(CONTENTS[field], max_size=3)))
        fill(tensor.parameters, draw(sometimes(PARAMETERS)) or {})
    raw = draw(sometimes(st.lists(st.binary(max_size=8), max_size=3)))
    message.raw_input_contents.extend([bytes(3136)] * len(message.inputs) if raw is None else raw)
    for name in draw(st.lists(NAMES, max_size=2)):
        fill(message.outputs.add(name=name).parameters, draw(sometimes(PARAMETERS)) or {})
    fill(message.parameters, draw(sometimes(PARAMETERS)) or {})
    return message


def fill(parameters: Any, values: dict[str, dict[str, Any]]) -> None:
    for name, value in values.items():
        parameters[name].CopyFrom(service_pb2.InferParameter(**value))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory: Path = publish(tmp_path_factory.mktemp("repository"), "ident", ident(), CONFIG)
    return Model.load(directory, 1, read_config(directory))


@given(message=messages())
def test_any_message_is_a_request_that_runs_or_is_refused(model: Model, message: Any) -> None:
    try:
        request = validate(parse(message, AS_CONFIGURED, SharedMemory(allowed=True)), model)
    except (InvalidRequest, NotFound):
        return
    (image,) = request.inputs.values()
    assert image.shape == (request.rows, 1, 28, 28)
    assert image.dtype == np.float32
    assert model.run(request.inputs, request.outputs)["logits"].shape == (request.rows, 10)
