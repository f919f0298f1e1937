"""The same models for both servers: ONNX for ours, Python for Triton."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx_models import DIGITS, build, ident, publish

DATATYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}
MODELS = ("ident", "echo", "half", "vector")

IDENT = """
max_batch_size: 8
input [{ name: "image" data_type: TYPE_FP32 dims: [1, 28, 28] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" }]
dynamic_batching { }
instance_group [{ kind: KIND_CPU count: 1 }]
"""

PYTHON_MODEL = '''
import json

import triton_python_backend_utils as backend


class TritonPythonModel:
    """Each output is the input of the same place, cut to the output's length where that is shorter."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.pairs = [
            (source["name"], target["name"], int(target["dims"][0]))
            for source, target in zip(config["input"], config["output"])
        ]

    def execute(self, requests):
        return [backend.InferenceResponse([self.copy(request, *pair) for pair in self.pairs]) for request in requests]

    def copy(self, request, source, target, length):
        array = backend.get_input_tensor_by_name(request, source).as_numpy()
        if array.ndim > 2:
            array = array.reshape(len(array), -1)[:, :length].copy()
        return backend.Tensor(target, array)
'''


def publish_models(repository: Path, backend: str) -> None:
    """Every model for one backend, `onnxruntime` or `python`."""
    publish(repository, "ident", ident(), _config(IDENT, backend), DIGITS)
    publish(repository, "echo", _echo(DATATYPES), _config(_echo_config(list(DATATYPES)), backend))
    publish(repository, "half", _echo({"FP16": TensorProto.FLOAT16}), _config(_echo_config(["FP16"]), backend))
    vector = """input [{ name: "x" data_type: TYPE_INT32 dims: [-1] }]
                output [{ name: "y" data_type: TYPE_INT32 dims: [-1] }]"""
    publish(repository, "vector", _vector(), _config(vector, backend))
    if backend == "python":
        for name in MODELS:
            (repository / name / "1" / "model.py").write_text(PYTHON_MODEL)


def _config(text: str, backend: str) -> str:
    return f'backend: "{backend}"\n{text}'


def _echo_config(datatypes: list[str]) -> str:
    def tensors(prefix: str) -> str:
        types = {name: "STRING" if name == "BYTES" else name for name in datatypes}
        return ", ".join(f'{{ name: "{prefix}_{n}" data_type: TYPE_{t} dims: [3] }}' for n, t in types.items())

    return f"max_batch_size: 4 input [{tensors('x')}] output [{tensors('y')}]"


def _echo(datatypes: Mapping[str, int]) -> onnx.ModelProto:
    """Outputs `y_NAME` equal to inputs `x_NAME`, each `[batch, 3]`."""
    return build(
        [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in datatypes],
        inputs=[helper.make_tensor_value_info(f"x_{name}", kind, ["b", 3]) for name, kind in datatypes.items()],
        outputs=[helper.make_tensor_value_info(f"y_{name}", kind, ["b", 3]) for name, kind in datatypes.items()],
    )


def _vector() -> onnx.ModelProto:
    """Output `y` equal to input `x`, of any length; it does not batch."""
    return build(
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.INT32, ["length"])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.INT32, ["length"])],
    )
