"""What an exported graph must be, whatever made it: checked on the file as it was read back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto

from stn_serve.metadata import METADATA_KEY, ModelMetadata

BATCH = "batch"
"""Name of the one symbolic dimension."""

OPSETS = {2: 18, 3: 20}
"""By the transformers' dimensions. Opset 20 renames `bilinear` to `linear`, which TensorRT silently takes for nearest:
images stay below it. GridSample of volumes does not exist before it."""

RENAMED_AT_20 = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}

FORBIDDEN = {
    "AffineGrid": "runs on the CPU under CUDA, and TensorRT lacks it",
    "If": "has control flow, which rules out CUDA graphs",
    "Loop": "has control flow, which rules out CUDA graphs",
    "Scan": "has control flow, which rules out CUDA graphs",
}

Finding = tuple[str, object, object]
"""What was looked at, what was expected, what was found."""


class GraphError(ValueError):
    """An exported graph that breaks the contract; `checks` names what, the message also what was found."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.checks = tuple(check for check, _, _ in findings)
        wrong = "; ".join(f"{check}: expected {expected}, found {found}" for check, expected, found in findings)
        super().__init__(f"the exported graph is not what it must be: {wrong}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerAttributes:
    """How a GridSample reads its image."""

    mode: str
    padding: str
    align_corners: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphContract:
    """What the graph of one network must be.

    Checks, by name: `opset`, `ir_version`, `operators`, `samplers`, `grids`, `input`, `outputs`, `initializers`,
    `metadata`.
    """

    dimensions: int
    """Of what the transformers sample: 2 for images, 3 for volumes."""
    outputs: dict[str, tuple[int, ...]]
    """Name and dims without the batch axis, in order."""
    samplers: frozenset[SamplerAttributes]
    metadata: ModelMetadata

    @property
    def opset(self) -> int:
        """Of the default operator domain, the only one."""
        return OPSETS[self.dimensions]

    @property
    def ir_version(self) -> int:
        """The oldest that holds the opset (8 or 9), so that old runtimes load the file."""
        return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", self.opset)]))

    def check(self, model: onnx.ModelProto) -> None:
        """Hold a model against the contract.

        Raises:
            GraphError: with everything that differs.
        """
        findings = [(check, expected, found) for check, expected, found in self._compare(model) if expected != found]
        if findings:
            raise GraphError(findings)

    def _compare(self, model: onnx.ModelProto) -> Iterator[Finding]:
        graph = model.graph
        yield "opset", {"": self.opset}, {opset.domain: opset.version for opset in model.opset_import}
        yield "ir_version", self.ir_version, model.ir_version
        yield "operators", [], _forbidden(model)
        yield "samplers", self._expected_samplers(), _samplers(graph)
        yield "grids", [], _grids_not_float(model)
        yield "input", {"image": self._image()}, {tensor.name: _tensor(tensor) for tensor in graph.input}
        yield "outputs", self._expected_outputs(), {tensor.name: _tensor(tensor) for tensor in graph.output}
        yield "initializers", "all in use", _unused(graph) or "all in use"
        yield "metadata", self.metadata.to_json(), _metadata(model)

    def _expected_samplers(self) -> set[SamplerAttributes]:
        if self.opset < 20:
            return set(self.samplers)
        return {
            SamplerAttributes(mode=RENAMED_AT_20[sampler.mode], padding=sampler.padding) for sampler in self.samplers
        }

    def _image(self) -> tuple[str, list[int | str]]:
        image = self.metadata.input
        return "UINT8", [BATCH, image.height, image.width, image.channels]

    def _expected_outputs(self) -> dict[str, tuple[str, list[int | str]]]:
        return {name: ("FLOAT", [BATCH, *dims]) for name, dims in self.outputs.items()}


def _forbidden(model: onnx.ModelProto) -> list[str]:
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    reasons = [f"{node.op_type}, which {FORBIDDEN[node.op_type]}" for node in nodes if node.op_type in FORBIDDEN]
    return sorted(set(reasons) | {f"{node.op_type} of domain '{node.domain}'" for node in nodes if node.domain})


def _samplers(graph: onnx.GraphProto) -> set[SamplerAttributes]:
    return {_attributes(node) for node in graph.node if node.op_type == "GridSample"}


def _attributes(node: onnx.NodeProto) -> SamplerAttributes:
    given: dict[str, Any] = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return SamplerAttributes(
        mode=given.get("mode", b"").decode(),
        padding=given.get("padding_mode", b"zeros").decode(),
        align_corners=bool(given.get("align_corners", 0)),
    )


def _grids_not_float(model: onnx.ModelProto) -> list[str]:
    """Grids of less than float32, by element type."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    grids = [types.get(node.input[1], 0) for node in graph.node if node.op_type == "GridSample"]
    return [TensorProto.DataType.Name(elem) for elem in grids if elem != TensorProto.FLOAT]


def _tensor(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return TensorProto.DataType.Name(tensor.elem_type), dims


def _unused(graph: onnx.GraphProto) -> list[str]:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    return [tensor.name for tensor in graph.initializer if tensor.name not in used]


def _metadata(model: onnx.ModelProto) -> str | None:
    return next((prop.value for prop in model.metadata_props if prop.key == METADATA_KEY), None)
