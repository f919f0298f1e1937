"""Feature maps sampled pixel by pixel, for CPUs: there ONNX Runtime's `GridSample` goes channel by channel.

It works out anew for each channel where each sample lies and how its four neighbours weigh. With the channels of a
pixel side by side that is done once for all of them, and the rest are copies and products of whole vectors: about
three times as fast at 48 and 64 channels, nearly four at 128 (`python -m benchmarks.pixel_sampling`). An image's few
channels are left to `GridSample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

MIN_CHANNELS = 16
"""With fewer, copying pixels costs more than it saves."""
SUPPORTED = {"mode": b"bilinear", "padding_mode": b"border", "align_corners": 0}
BY_PIXEL = "/by_pixel/"
"""In the names of values that stand for a `GridSample`."""
PLACE = f"{BY_PIXEL}place_"
"""In the names of those that tell where the samples lie."""


def sample_by_pixel(path: Path) -> int:
    """Replace every `GridSample` of a file that samples many channels, bilinearly with border padding, in float32.

    What is computed is the same but for rounding: the same coordinates, the same four neighbours, other sums.

    Returns:
        How many were replaced.
    """
    model = onnx.load(path)
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {value.name: value.type.tensor_type for value in (*values, *model.graph.input)}
    nodes: list[onnx.NodeProto] = []
    replaced = 0
    for node in model.graph.node:
        image = _shape(types, node.input[0]) if node.op_type == "GridSample" else ()
        grid = _shape(types, node.input[1]) if image else ()
        if grid and _is_worth_it(node, image):
            nodes += _Replacement(model.graph, node, image, grid).nodes
            replaced += 1
        else:
            nodes.append(node)
    if replaced:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.checker.check_model(model)
        onnx.save(model, path)
    return replaced


def sampled(graph: onnx.GraphProto) -> list[str]:
    """What the samplers of a graph yield, in their order, whichever way they sample."""
    return [node.output[0] for node in graph.node if samples(node) and BY_PIXEL not in node.output[0]]


def samples(node: onnx.NodeProto) -> bool:
    """Whether it is a sampler, or a part of one."""
    return node.op_type == "GridSample" or any(BY_PIXEL in name for name in (*node.input, *node.output))


def content(node: onnx.NodeProto) -> set[str]:
    """What a node makes its output of; of a sampler what it samples, and not where."""
    return set(node.input[:1]) if node.op_type == "GridSample" else {name for name in node.input if PLACE not in name}


def _shape(types: dict[str, Any], name: str) -> tuple[int, ...]:
    """Without the batch; empty for what is not an image of known size in float32."""
    tensor = types.get(name)
    if tensor is None or tensor.elem_type != TensorProto.FLOAT:
        return ()
    sizes = tuple(dim.dim_value for dim in tensor.shape.dim)[1:]
    return sizes if len(sizes) == 3 and all(sizes) else ()


def _is_worth_it(node: onnx.NodeProto, image: tuple[int, ...]) -> bool:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    channels, height, width = image
    return {**SUPPORTED, "padding_mode": b"zeros", **attributes} == SUPPORTED and (
        channels >= MIN_CHANNELS and min(height, width) > 1
    )


class _Replacement:
    """The nodes that stand for one `GridSample` from `[N, C, H, W]` and `[N, h, w, 2]` to `[N, C, h, w]`."""

    def __init__(self, graph: onnx.GraphProto, node: onnx.NodeProto, image: Sequence[int], grid: Sequence[int]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._name = node.name
        maps, places = node.input
        channels, height, width = image
        samples = grid[0] * grid[1]
        corner, fraction = self._places(places, np.array([width, height], np.float32))
        row = self._place("MatMul", corner, self._constant([[1], [width]]))
        first = self._place("Reshape", self._place("Cast", row, to=TensorProto.INT64), self._sizes(0, samples, 1))
        right, down = self._halves(self._place("Reshape", fraction, self._sizes(0, samples, 2)))
        rows = self._add("Transpose", maps, perm=[0, 2, 3, 1])
        pixels = self._add("Reshape", rows, self._sizes(0, height * width, channels))
        upper_left, upper_right, lower_left, lower_right = (
            self._gather(pixels, first, step) for step in (0, 1, width, width + 1)
        )
        upper, lower = self._between(upper_left, upper_right, right), self._between(lower_left, lower_right, right)
        result = self._add("Reshape", self._between(upper, lower, down), self._sizes(0, *grid[:2], channels))
        self.nodes.append(helper.make_node("Transpose", [result], node.output, node.name, perm=[0, 3, 1, 2]))

    def _places(self, places: str, size: ArrayLike) -> tuple[str, str]:
        """Of the upper left of each sample's four neighbours, x and y; and how far from it the sample lies.

        The order of the operations is that of `GridSample`, so that both round alike.
        """
        one, half = self._constant(1), self._constant(0.5)
        scaled = self._place("Mul", self._place("Add", places, one), self._constant(size))
        place = self._place("Mul", self._place("Sub", scaled, one), half)
        last = np.asarray(size) - 1
        inside = self._place("Min", self._place("Max", place, self._constant(0)), self._constant(last))
        corner = self._place("Min", self._place("Floor", inside), self._constant(last - 1))
        return corner, self._place("Sub", inside, corner)

    def _gather(self, pixels: str, first: str, step: int) -> str:
        index = self._place("Add", first, self._constant(step, np.int64)) if step else first
        return self._add("GatherND", pixels, index, batch_dims=1)

    def _between(self, begin: str, end: str, fraction: str) -> str:
        """Linear interpolation."""
        return self._add("Add", begin, self._add("Mul", self._add("Sub", end, begin), fraction))

    def _halves(self, pairs: str) -> tuple[str, str]:
        first = self._place("Split", pairs, self._sizes(1, 1), axis=-1)
        second = f"{first}_1"
        self.nodes[-1].output.append(second)
        return first, second

    def _sizes(self, *sizes: int) -> str:
        return self._constant(sizes, np.int64)

    def _place(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - as onnx has it
        return self._append(f"{PLACE}{operator.lower()}", operator, inputs, attributes)

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        return self._append(f"{BY_PIXEL}{operator.lower()}", operator, inputs, attributes)

    def _append(self, name: str, operator: str, inputs: Sequence[str], attributes: dict[str, Any]) -> str:
        output = f"{self._name}{name}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def _constant(self, value: ArrayLike, dtype: DTypeLike = np.float32) -> str:
        name = f"{self._name}{BY_PIXEL}constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name
