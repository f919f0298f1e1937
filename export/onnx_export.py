"""From a network to an ONNX file: the image as a decoder yields it in, logits and theta out."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from export.graph_contract import BATCH, GraphContract
from export.half_precision import halve
from export.sampler_calls import SamplerCalls
from stn_serve.metadata import METADATA_KEY, Color, ControlGrid, InputImage, ModelMetadata, Transformer, TransformKind
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import ThinPlateSpline, Transform

COLORS: dict[int, Color] = {1: "gray", 3: "rgb"}

PREFIX = "network."
"""Of the weights' names in `Servable`, and so in the graph; without it they are the checkpoint's."""


class ExportError(ValueError):
    """A network that cannot be exported; says what of it."""


class Servable(nn.Module):
    """A network with the face that is served.

    In: images UINT8 `[N, H, W, C]`, as a decoder yields them. Out: logits `[N, K]` or `[N, P, K]` and, if the network
    has transformers, theta `[N, S, ...]`.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Cast, layout and scale to [0, 1], then the network."""
        channels, height, width = self.network.input_size
        # With one channel both layouts are the same bytes: a reshape costs nothing, a transpose a copy.
        planes = image.reshape(-1, 1, height, width) if channels == 1 else image.permute(0, 3, 1, 2)
        answer: Answer = self.network((planes.float() / 255).to(self.dtype))
        outputs = (answer.logits,) if answer.theta is None else (answer.logits, answer.theta)
        return tuple(output.float() for output in outputs)


def export_onnx(network: Network, labels: Sequence[str], path: Path, *, half: bool = False) -> GraphContract:
    """Write a network, in evaluation mode and on the CPU, as an ONNX file, and check what was written.

    Args:
        network: what to export.
        labels: names of the classes.
        path: the file.
        half: compute in float16 but for grids, thetas and outputs (see `export.half_precision`).

    Returns:
        What the graph promises, and was found to keep.

    Raises:
        ExportError: the network has a shape or parts that the contract does not know.
        GraphError: the file is not what it must be.
    """
    contract = describe(network, labels)
    _, height, width = network.input_size
    example = torch.zeros(2, height, width, contract.metadata.input.channels, dtype=torch.uint8)
    distinct = _with_distinct_heads(network)
    servable = Servable(halve(distinct), torch.float16) if half else Servable(distinct)
    model = _trace(servable, example, contract)
    _tidy(model, contract)
    _restore_heads(model, network)
    onnx_ir.save(model, path)
    contract.check(onnx.load(path))
    return contract


def describe(network: Network, labels: Sequence[str]) -> GraphContract:
    """What the graph of a network must be.

    Raises:
        ExportError: the network has a shape or parts that the contract does not know.
    """
    channels, height, width = network.input_size
    if channels not in COLORS:
        raise ExportError(f"the network takes {channels} channels, expected 1 (gray) or 3 (RGB)")
    with torch.no_grad(), SamplerCalls() as sampling:
        answer = network(torch.zeros(2, channels, height, width))
    placed = network.transformers()
    _check_answer(answer, placed, labels)
    transform = placed[0].module.transform if placed else None
    metadata = ModelMetadata(
        task="classification" if answer.logits.dim() == 2 else "sequence",
        labels=tuple(labels),
        input=InputImage(height=height, width=width, color=COLORS[channels]),
        transform=cast(TransformKind, transform.kind) if transform else None,
        transformers=tuple(_described(transformer) for transformer in placed),
        control_grid=_control_grid(transform),
    )
    return GraphContract(
        dimensions=max((call.dimensions for call in sampling.calls), default=2),
        outputs={name: tuple(output.shape[1:]) for name, output in answer._asdict().items() if output is not None},
        samplers=frozenset(call.attributes for call in sampling.calls),
        metadata=metadata,
    )


def _check_answer(answer: Answer, placed: Sequence[PlacedTransformer], labels: Sequence[str]) -> None:
    logits, theta = answer
    if logits.dim() not in (2, 3) or logits.shape[-1] != len(labels):
        raise ExportError(
            f"logits have shape {list(logits.shape)}, expected [N, {len(labels)}] or [N, P, {len(labels)}] for "
            f"{len(labels)} labels"
        )
    counted = 0 if theta is None else theta.shape[1]
    if counted != len(placed):
        raise ExportError(f"theta is of {counted} transformers, but the network names {len(placed)}")
    kinds = {transformer.module.transform.kind for transformer in placed}
    if len(kinds) > 1:
        raise ExportError(f"transformers of one network must be of one kind, these are {', '.join(sorted(kinds))}")


def _described(placed: PlacedTransformer) -> Transformer:
    supersample = placed.module.sampler.supersample
    height, width = (size // supersample for size in placed.module.transform.output_size[-2:])
    return Transformer(name=placed.name, place=placed.place, output_size=(height, width))


def _control_grid(transform: Transform | None) -> ControlGrid | None:
    if not isinstance(transform, ThinPlateSpline):
        return None
    return ControlGrid(size=transform.control_size, regularization=transform.regularization)


def _with_distinct_heads(network: Network) -> Network:
    """A copy with random regression layers: the exporter merges weights that are equal, and drops biases of zero.

    Those of untrained transformers are both, and then no theta could be forced to prove that they work.
    """
    distinct = copy.deepcopy(network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in _heads(network):
            for parameter in distinct.get_submodule(name).parameters():
                parameter.uniform_(generator=random)
    return distinct


def _restore_heads(model: onnx_ir.Model, network: Network) -> None:
    weights = network.state_dict()
    for name in _heads(network):
        for key in (f"{name}.weight", f"{name}.bias"):
            model.graph.initializers[key].const_value = onnx_ir.tensor(weights[key].numpy().copy(), name=key)


def _heads(network: Network) -> list[str]:
    heads = {placed.module.head for placed in network.transformers()}
    return [name for name, module in network.named_modules() if module in heads]


def _trace(servable: Servable, example: Tensor, contract: GraphContract) -> onnx_ir.Model:
    with _quiet():
        program = torch.onnx.export(
            servable,
            (example,),
            input_names=["image"],
            output_names=list(contract.outputs),
            opset_version=contract.opset,
            dynamic_shapes={"image": {0: BATCH}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - only the old exporter gives None
    return program.model


def _tidy(model: onnx_ir.Model, contract: GraphContract) -> None:
    """Name weights as the checkpoint does, drop traces of the machine it was made on, and say what it is."""
    ClearMetadataAndDocStringPass()(model)
    for value in list(model.graph.initializers.values()):
        value.name = (value.name or "").removeprefix(PREFIX)
    model.ir_version = contract.ir_version
    model.metadata_props[METADATA_KEY] = contract.metadata.to_json()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: none is about anything that a user can change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
