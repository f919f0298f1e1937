"""Static int8: calibrated on real images, and kept out of wherever a model decides where to look.

Localisation networks, whatever computes theta and grids, and sampling stay in float32. What the answer is read from is
quantised, even where a later transformer looks at it as well: its theta then moves a little, by no more than
`export.parity` allows. The theta of a transformer that looks at the image, or at crops of it, stays as it is.

The graph keeps its float operators between QuantizeLinear and DequantizeLinear (QDQ); runtimes fuse them to integer
ones. Weights have seven bits and one scale a channel: with eight, processors without VNNI saturate their sums, and the
same file would answer otherwise there than here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from export.parity_cases import Images
from export.pixel_sampling import content, samples

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators with integer kernels that pay; what lies between them (`PASSED`) stays integer as well."""
PASSED = ("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Add", "Concat")
CALIBRATION_BATCH = 64
OPTIONS: dict[str, Any] = {
    "quant_format": QuantFormat.QDQ,
    "op_types_to_quantize": [*QUANTIZED, *PASSED],
    "per_channel": True,
    "reduce_range": True,
    "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
    "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
}
"""Of ONNX Runtime's `quantize_static`."""

Judge = Callable[[Path], float]
"""Accuracy in percent of a model file."""


class QuantizationError(ValueError):
    """A network that cannot be quantised, or not without harm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """What became of the layers that could be quantised, by the names of their nodes."""

    quantized: tuple[str, ...]
    left_out: tuple[str, ...]
    """Too sensitive: with them, too much accuracy was lost."""


def quantize(source: Path, target: Path, calibration: Images, judge: Judge, allowed_points: float) -> Quantization:
    """Quantise a float32 model; layers are left out, the most harmful first, until accuracy holds.

    Args:
        source: the float32 file.
        target: the file to write.
        calibration: real training images, UINT8 `[N, H, W, C]`.
        judge: measures accuracy; on other images than those that the result will be published with.
        allowed_points: how many percentage points may be lost.

    Raises:
        QuantizationError: nothing can be quantised, or nothing without losing more than allowed.
    """
    model = onnx.load(source)
    layers = quantizable(model.graph)
    if not layers:
        raise QuantizationError(
            f"int8: no {', '.join(QUANTIZED)} is left to quantise; localisation and grid never are: export fp16 or fp32"
        )
    expected = judge(source)
    kept = list(layers)
    harm: dict[str, float] = {}
    while kept:
        _quantize(source, target, model, calibration, kept)
        if judge(target) >= expected - allowed_points:
            return Quantization(quantized=tuple(kept), left_out=tuple(layer for layer in layers if layer not in kept))
        harm = harm or {layer: _harm(source, model, calibration, layer, judge) for layer in layers}
        kept.remove(max(kept, key=harm.__getitem__))
    raise QuantizationError(
        f"int8: every choice of layers loses more than {allowed_points:g} points of accuracy; export fp16 or fp32"
    )


def quantizable(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes with weights that belong to no transformer."""
    looking = transformer_nodes(graph)
    constants = {tensor.name for tensor in graph.initializer}
    return [
        node.name
        for node in graph.node
        if node.op_type in QUANTIZED and node.input[1] in constants and node.name not in looking
    ]


def transformer_nodes(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that find out where to look, and that sample there.

    What the answer is read from leads back through what samplers sample, never through their grids: all that is not on
    such a way is localisation or grid.
    """
    read = {output.name for output in graph.output if output.name != "theta"}
    for node in reversed(graph.node):
        if read & set(node.output):
            read |= content(node)
    return {node.name for node in graph.node if samples(node) or not read & set(node.output)}


def _harm(source: Path, model: onnx.ModelProto, calibration: Images, layer: str, judge: Judge) -> float:
    """Errors, in percent, with just this layer quantised."""
    with tempfile.TemporaryDirectory() as directory:
        alone = Path(directory) / "model.onnx"
        _quantize(source, alone, model, calibration, [layer])
        return -judge(alone)


def _quantize(source: Path, target: Path, model: onnx.ModelProto, calibration: Images, layers: Sequence[str]) -> None:
    """Write the model with the named layers in int8, and what lies between two of them."""
    nodes = with_passed(model.graph, layers)
    with quiet_quantizer():
        quantize_static(
            source, target, Calibration(calibration, model.graph.input[0].name), nodes_to_quantize=nodes, **OPTIONS
        )
    _restore_face(target, model)


def with_passed(graph: onnx.GraphProto, layers: Sequence[str]) -> list[str]:
    """Names of the nodes to quantise so that numbers stay integer between these layers; none of a transformer."""
    looking = transformer_nodes(graph)
    fed = _fed_by(graph, layers)
    return sorted(
        node.name
        for node in graph.node
        if node.name in layers or (node.op_type in PASSED and node.name not in looking and set(node.input) & fed)
    )


def _fed_by(graph: onnx.GraphProto, layers: Sequence[str]) -> set[str]:
    """Values that come from these layers through nothing but what passes integers on."""
    found: set[str] = set()
    for node in graph.node:
        if node.name in layers or (node.op_type in PASSED and found & set(node.input)):
            found |= set(node.output)
    return found


def _restore_face(path: Path, original: onnx.ModelProto) -> None:
    """Opset, IR version and metadata as they were: the quantiser raises them and signs its work."""
    quantized = onnx.load(path)
    used = {node.domain for node in quantized.graph.node}
    kept = [opset for opset in quantized.opset_import if opset.domain in used | {""}]
    del quantized.opset_import[:], quantized.metadata_props[:]
    quantized.opset_import.extend(kept)
    quantized.metadata_props.extend(original.metadata_props)
    quantized.ir_version = original.ir_version
    quantized.producer_name, quantized.producer_version = original.producer_name, original.producer_version
    onnx.save(quantized, path)


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the quantiser batches of images."""

    def __init__(self, images: Images, name: str) -> None:
        self.batches: Iterator[dict[str, NDArray[np.uint8]]] = (
            {name: images[start : start + CALIBRATION_BATCH]} for start in range(0, len(images), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch by input name; None at the end."""
        return next(self.batches, None)


@contextmanager
def quiet_quantizer() -> Iterator[None]:
    """Without the quantiser's advice to preprocess: the exporter has folded what can be folded."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
