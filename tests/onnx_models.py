"""Tiny ONNX models in Triton's repository layout, for the tests of the server. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from stn_serve.metadata import METADATA_KEY, InputImage, ModelMetadata, Transformer

DIGITS = tuple(f"digit_{digit}" for digit in range(10))

IDENT_CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "image" data_type: TYPE_FP32 dims: [1, 28, 28] }]
output [{ name: "logits" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" }]
dynamic_batching { }
instance_group [{ kind: KIND_CPU count: 1 }]
"""

VISION_METADATA = ModelMetadata(
    task="classification",
    labels=("dark", "medium", "bright"),
    input=InputImage(height=8, width=8, color="gray"),
    transform="affine",
    transformers=(Transformer(name="look", place="image", output_size=(4, 4)),),
)


def metadata_parameter(document: str) -> str:
    """As `stn export` writes it into `config.pbtxt`."""
    return f"parameters {{ key: '{METADATA_KEY}' value {{ string_value: '{document}' }} }}"


VISION_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [{ name: "image" data_type: TYPE_UINT8 dims: [8, 8, 1] }]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [3] },
  { name: "theta" data_type: TYPE_FP32 dims: [1, 2, 3] }
]
dynamic_batching { }
instance_group [{ kind: KIND_CPU count: 1 }]
""" + metadata_parameter(VISION_METADATA.to_json())

HALF_SIZE = np.array([[[[0.5, 0, 0.25], [0, 0.5, 0]]]], np.float32)


def publish(
    repository: Path, name: str, model: onnx.ModelProto, config: str, labels: Sequence[str] = (), version: int = 1
) -> Path:
    """Write a repository entry, and return its directory."""
    directory = repository / name
    (directory / str(version)).mkdir(parents=True)
    onnx.save(model, directory / str(version) / "model.onnx")
    (directory / "config.pbtxt").write_text(config)
    if labels:
        (directory / "labels.txt").write_text("\n".join(labels) + "\n")
    return directory


def publish_ident(repository: Path, name: str = "ident", config: str = IDENT_CONFIG, version: int = 1) -> Path:
    """The model of the golden captures: FP32 [1,28,28] -> its first ten numbers."""
    return publish(repository, name, ident(), config, DIGITS, version)


def publish_vision(repository: Path, name: str = "vision") -> Path:
    """A classifier of brightness that always looks at the same half of the image."""
    return publish(repository, name, vision(), VISION_CONFIG)


SPOT_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [{ name: "image" data_type: TYPE_UINT8 dims: [64, 64, 1] }]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [2] },
  { name: "theta" data_type: TYPE_FP32 dims: [1, 2, 3] }
]
dynamic_batching { }
instance_group [{ kind: KIND_CPU count: 1 }]
"""

SPOT_SCALE = 0.1


def publish_spot(repository: Path) -> Path:
    """A model that looks at the centroid of what is bright, with a tenth of the image's sides."""
    return publish(repository, "spot", spot(), SPOT_CONFIG)


def spot() -> onnx.ModelProto:
    """Theta `[batch, 1, 2, 3]` of an attention transform to the centroid of brightness; the logits mean nothing."""
    centres = ((np.arange(64, dtype=np.float32) + 0.5) / 32 - 1).reshape(64, 1)
    model = build(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["pixels", "axes"], ["total"], keepdims=0),
            helper.make_node("Mul", ["pixels", "xs"], ["x_weighted"]),
            helper.make_node("ReduceSum", ["x_weighted", "axes"], ["x_sum"], keepdims=0),
            helper.make_node("Div", ["x_sum", "total"], ["x"]),
            helper.make_node("Mul", ["pixels", "ys"], ["y_weighted"]),
            helper.make_node("ReduceSum", ["y_weighted", "axes"], ["y_sum"], keepdims=0),
            helper.make_node("Div", ["y_sum", "total"], ["y"]),
            helper.make_node("Mul", ["x", "zero"], ["none"]),
            helper.make_node("Add", ["none", "side"], ["scale"]),
            helper.make_node("Concat", ["scale", "none", "x", "none", "scale", "y"], ["row"], axis=1),
            helper.make_node("Reshape", ["row", "shape"], ["theta"]),
            helper.make_node("Concat", ["x", "y"], ["logits"], axis=1),
        ],
        inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 64, 64, 1])],
        outputs=[
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", 1, 2, 3]),
        ],
        constants={
            "axes": np.array([1, 2]),
            "xs": centres[None, None],
            "ys": centres[None, :, None],
            "zero": np.float32(0),
            "side": np.float32(SPOT_SCALE),
            "shape": np.array([-1, 1, 2, 3]),
        },
    )
    metadata = ModelMetadata(
        task="classification",
        labels=("right", "below"),
        input=InputImage(height=64, width=64, color="gray"),
        transform="attention",
        transformers=(Transformer(name="look", place="image", output_size=(16, 16)),),
    )
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    return model


def ident() -> onnx.ModelProto:
    """Logits `[batch, 10]`: the first ten numbers of the image."""
    constants = {"flat": [0, -1], "start": [0], "end": [10], "axis": [1]}
    return build(
        [
            helper.make_node("Reshape", ["image", "flat"], ["row"]),
            helper.make_node("Slice", ["row", "start", "end", "axis"], ["logits"]),
        ],
        inputs=[helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        outputs=[helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants={name: np.array(value, np.int64) for name, value in constants.items()},
    )


def vision() -> onnx.ModelProto:
    """Logits from the mean brightness m in [0, 1]: `-20 * [m, m - 0.5, m - 1] ** 2`; theta is always `HALF_SIZE`."""
    model = build(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "scale"], ["brightness"]),
            helper.make_node("Reshape", ["brightness", "column"], ["rows"]),
            helper.make_node("Sub", ["rows", "levels"], ["distance"]),
            helper.make_node("Mul", ["distance", "distance"], ["squared"]),
            helper.make_node("Mul", ["squared", "slope"], ["logits"]),
            helper.make_node("Reshape", ["brightness", "cube"], ["each"]),
            helper.make_node("Mul", ["each", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "look"], ["theta"]),
        ],
        inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 1])],
        outputs=[
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", 1, 2, 3]),
        ],
        constants={
            "axes": np.array([1, 2, 3]),
            "column": np.array([-1, 1]),
            "cube": np.array([-1, 1, 1, 1]),
            "scale": np.float32(1 / 255),
            "levels": np.array([[0, 0.5, 1]], np.float32),
            "slope": np.float32(-20),
            "zero": np.float32(0),
            "look": HALF_SIZE,
        },
    )
    helper.set_model_props(model, {METADATA_KEY: VISION_METADATA.to_json()})
    return model


def build(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, ArrayLike] | None = None,
) -> onnx.ModelProto:
    """A model of opset 18, as the exporter writes them."""
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "test", list(inputs), list(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def publish_slow(repository: Path, repeats: int = 12) -> Path:
    """A model that multiplies large matrices `repeats` times for each request `[1]`; it does not batch."""
    products = [
        helper.make_node("MatMul", [f"m{step}", "identity"], [f"m{step + 1}"], name=f"product{step}")
        for step in range(repeats)
    ]
    model = build(
        [
            helper.make_node("Expand", ["x", "size"], ["m0"]),
            *products,
            helper.make_node("ReduceMean", [f"m{repeats}"], ["mean"], keepdims=0),
            helper.make_node("Reshape", ["mean", "one"], ["y"]),
        ],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        constants={"size": np.array([1024, 1024]), "one": np.array([1]), "identity": np.eye(1024, dtype=np.float32)},
    )
    config = """input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
                output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]"""
    return publish(repository, "slow", model, config)


TROUBLE_CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input [{ name: "laps" data_type: TYPE_INT64 dims: [1] }, { name: "index" data_type: TYPE_INT64 dims: [1] }]
output [{ name: "square" data_type: TYPE_INT64 dims: [1] }]
dynamic_batching { }
instance_group [{ kind: KIND_CPU count: 1 }]
"""


def publish_trouble(repository: Path, name: str = "trouble", batching: str = "") -> Path:
    """A model that takes its time, hangs, or fails, as its callers wish; `batching` says how it queues."""
    return publish(repository, name, trouble(), TROUBLE_CONFIG.replace("{ }", f"{{ {batching} }}"))


def trouble() -> onnx.ModelProto:
    """Square `[batch, 1]` of `index`, after as many laps as the slowest row asks for; fails if an index is not 0 to 7.

    A lap takes about a microsecond; 10**12 of them never end.
    """
    number, flag = TensorProto.INT64, TensorProto.BOOL
    lap = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "lap"], ["next"])],
        "lap",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("lap", number), ("go", flag), ("sum", number))
        ],
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("on", flag), ("next", number))],
    )
    return build(
        [
            helper.make_node("ReduceMax", ["laps"], ["count"], keepdims=0),
            helper.make_node("Loop", ["count", "", "zero"], ["total"], body=lap),
            helper.make_node("Mul", ["total", "zero"], ["nothing"]),
            helper.make_node("Gather", ["squares", "index"], ["found"]),
            helper.make_node("Add", ["found", "nothing"], ["square"]),
        ],
        inputs=[helper.make_tensor_value_info(name, number, ["batch", 1]) for name in ("laps", "index")],
        outputs=[helper.make_tensor_value_info("square", number, ["batch", 1])],
        constants={"zero": np.int64(0), "squares": np.arange(8) ** 2},
    )


def publish_wide(repository: Path) -> Path:
    """Output `[batch, 4194304]` (16 MB a row) of the caller's number: more than the sockets between them hold."""
    size = 4 * 2**20
    model = build(
        [helper.make_node("Expand", ["x", "size"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", size])],
        constants={"size": np.array([1, size])},
    )
    config = f"""max_batch_size: 4
                 input [{{ name: "x" data_type: TYPE_FP32 dims: [1] }}]
                 output [{{ name: "y" data_type: TYPE_FP32 dims: [{size}] }}]"""
    return publish(repository, "wide", model, config)
