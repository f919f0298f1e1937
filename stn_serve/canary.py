"""A canary at load: does this runtime, with these options, sample between pixels as the model's graph says?

TensorRT's ONNX parser knows no mode `linear`, as opset 20 spells it, and then samples *nearest* without a word (NVIDIA
TensorRT#4646); so does ONNX Runtime's provider on top of it. Every integer shift still comes out right. So each kind of
`GridSample` in the model's file is run by itself, in a graph of one node with the model's own opset, mode, provider and
session options, on a single bright pixel seen a quarter of a pixel beside itself: what comes out is the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.proto import onnx_graph_pb2 as onnx_graph
from stn_serve.providers import Provider, execution_providers
from stn_serve.session import open_session

Array = NDArray[np.float32]

SIZE = 8
"""Pixels along each side."""
PIXEL = 3
"""The bright one, along each side: no kernel reaches from it to the edge, so no padding matters."""
SHIFTS = (0.25, -0.25, 0.25)
"""In pixels, x before y before z: differing, so that exchanged axes come out."""
TOLERANCE = 0.05
"""Beyond what half precision and TF32 lose, and far below the 0.25 by which nearest errs."""
CUBIC_A = -0.75
"""Of the cubic convolution that ONNX and PyTorch share."""

IR_VERSION = 8
FLOAT = 1
INT, STRING = 2, 3
"""ONNX's numbers of types of tensors and of attributes."""

UNWANTED_OPTIONS = ("trt_profile_", "trt_engine_cache", "trt_timing_cache", "trt_ep_context", "trt_dump", "trt_int8")
"""What is about the model rather than the runtime: its shapes, its files, its calibration."""


class Sampling(NamedTuple):
    """What a `GridSample` node says, and how many axes it samples along."""

    opset: int
    mode: str
    padding_mode: str
    align_corners: bool
    axes: int


def check_sampling(path: Path, config: ModelConfig, axes: int) -> None:
    """Run each kind of `GridSample` in an ONNX file by itself, as the model will run.

    Args:
        path: The model.
        config: Whose providers and options its session has.
        axes: 2 for images, 3 for volumes.

    Raises:
        ConfigurationError: one computes something else than its mode says.
    """
    providers = [_without_model_options(provider) for provider in execution_providers(config)]
    for sampling in samplings(path, axes):
        session = open_session(graph(sampling), config, providers)
        [sampled] = session.run(None, {"image": bright_pixel(axes), "grid": shifted_grid(sampling)})
        verify(sampling, sampled, f"model '{config.name}' on {providers[0][0]}")


def samplings(path: Path, axes: int) -> list[Sampling]:
    """The kinds of `GridSample` in an ONNX file.

    Raises:
        ConfigurationError: it is no ONNX file.
    """
    model = onnx_graph.Model()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ConfigurationError(f"{path.name} is no ONNX file: {error}") from error
    opset = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 1)
    nodes = [*_nodes(model.graph.node), *(node for function in model.functions for node in _nodes(function.node))]
    found = (_sampling(node, opset, axes) for node in nodes if node.op_type == "GridSample")
    return list(dict.fromkeys(found))


def graph(sampling: Sampling) -> bytes:
    """An ONNX model of this one `GridSample`: `image` `[1, 1, 8, 8]` and `grid` `[1, 8, 8, 2]` to `sampled`."""
    sides = [SIZE] * sampling.axes
    node = onnx_graph.Node(
        input=["image", "grid"],
        output=["sampled"],
        op_type="GridSample",
        attribute=[
            onnx_graph.Attribute(name="mode", s=sampling.mode.encode(), type=STRING),
            onnx_graph.Attribute(name="padding_mode", s=sampling.padding_mode.encode(), type=STRING),
            onnx_graph.Attribute(name="align_corners", i=int(sampling.align_corners), type=INT),
        ],
    )
    model = onnx_graph.Model(
        ir_version=IR_VERSION,
        opset_import=[onnx_graph.Opset(version=sampling.opset)],
        graph=onnx_graph.Graph(
            name="canary",
            node=[node],
            input=[_value("image", [1, 1, *sides]), _value("grid", [1, *sides, sampling.axes])],
            output=[_value("sampled", [1, 1, *sides])],
        ),
    )
    return model.SerializeToString()


def bright_pixel(axes: int) -> Array:
    """An image or a volume `[1, 1, ...]` that is 1 at one pixel and 0 elsewhere."""
    image = np.zeros([1, 1, *[SIZE] * axes], np.float32)
    image[(0, 0, *[PIXEL] * axes)] = 1
    return image


def shifted_grid(sampling: Sampling) -> Array:
    """Where each pixel of the output looks, `[1, ..., axes]`: `SHIFTS` beside itself, x before y before z."""
    pixels = np.stack(np.meshgrid(*[np.arange(SIZE)] * sampling.axes, indexing="ij")[::-1], -1)
    pixels = pixels + np.array(SHIFTS[: sampling.axes])
    grid = 2 * pixels / (SIZE - 1) - 1 if sampling.align_corners else (2 * pixels + 1) / SIZE - 1
    return np.asarray(grid[None], np.float32)


def verify(sampling: Sampling, sampled: Array, where: str) -> None:
    """Hold what a sampler made of `bright_pixel` and `shifted_grid` against the kernel of its mode.

    Raises:
        ConfigurationError: it is another kernel; `where` says whose.
    """
    error = float(np.abs(sampled[0, 0] - _response(sampling.mode, sampling.axes)).max())
    if error <= TOLERANCE:
        return
    nearest = float(np.abs(sampled[0, 0] - _response("nearest", sampling.axes)).max()) <= TOLERANCE
    raise ConfigurationError(
        f"{where} would answer wrongly: its GridSample of opset {sampling.opset} says mode '{sampling.mode}', but the "
        f"runtime {'samples nearest' if nearest else f'errs by {error:.2g}'} a quarter of a pixel beside a pixel; "
        "export it with opset 18, whose modes every runtime knows, or serve it without this accelerator"
    )


def _response(mode: str, axes: int) -> Array:
    """What `bright_pixel` looks like through `shifted_grid`: the kernel, along each axis."""
    along = [_kernel(mode, np.arange(SIZE) + shift - PIXEL) for shift in reversed(SHIFTS[:axes])]
    response: Array = np.asarray(reduce(np.multiply.outer, along))
    return response


def _kernel(mode: str, offset: NDArray[Any]) -> Array:
    """Weight of a pixel at a distance, by the mode's names of all opsets."""
    distance = np.abs(offset)
    if mode == "nearest":
        weight = (distance < 0.5).astype(float)
    elif mode in ("bilinear", "linear"):
        weight = np.maximum(1 - distance, 0)
    else:
        a = CUBIC_A
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return np.asarray(weight, np.float32)


def _nodes(nodes: Iterable[onnx_graph.Node]) -> Iterator[onnx_graph.Node]:
    """With those of the branches and loops inside."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)


def _sampling(node: onnx_graph.Node, opset: int, axes: int) -> Sampling:
    said: dict[str, Any] = {attribute.name: attribute for attribute in node.attribute}
    mode = said["mode"].s.decode() if "mode" in said else "bilinear" if opset < 20 else "linear"
    padding_mode = said["padding_mode"].s.decode() if "padding_mode" in said else "zeros"
    return Sampling(opset, mode, padding_mode, "align_corners" in said and bool(said["align_corners"].i), axes)


def _value(name: str, shape: Iterable[int]) -> onnx_graph.Value:
    dims = onnx_graph.Shape(dim=[onnx_graph.Dimension(dim_value=size) for size in shape])
    return onnx_graph.Value(name=name, type=onnx_graph.Type(tensor_type=onnx_graph.Tensor(elem_type=FLOAT, shape=dims)))


def _without_model_options(provider: Provider) -> Provider:
    name, options = provider
    return name, {option: value for option, value in options.items() if not option.startswith(UNWANTED_OPTIONS)}
