"""What the graph of a network must be: seen by running it once, in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from export.graph_contract import GraphContract
from export.sampler_calls import SamplerCall, SamplerCalls
from stn_serve.metadata import Color, ControlGrid, InputImage, ModelMetadata, Transformer, TransformKind
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import ThinPlateSpline, Transform

COLORS: dict[int, Color] = {1: "gray", 3: "rgb"}

KINDS: dict[tuple[int, ...], TransformKind] = {(2, 3): "affine", (3, 3): "projective", (3, 4): "affine_3d"}
"""By the shape of one theta."""


class ExportError(ValueError):
    """A network that cannot be exported; says what of it."""


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
    kind = cast(TransformKind, transform.kind) if transform else _kind(answer.theta)
    metadata = ModelMetadata(
        task="classification" if answer.logits.dim() == 2 else "sequence",
        labels=tuple(labels),
        input=InputImage(height=height, width=width, color=COLORS[channels], resize=network.resize),
        transform=kind,
        transformers=tuple(map(_described, placed)) or _from_calls(answer.theta, sampling.calls),
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
    if placed and counted != len(placed):
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


def _kind(theta: Tensor | None) -> TransformKind | None:
    """Of a network that names no transformers of ours: what a theta of this shape is."""
    if theta is None:
        return None
    shape = tuple(theta.shape[2:])
    if theta.dim() != 4 or shape not in KINDS:
        kinds = ", ".join(f"[N, S, {rows}, {columns}]" for rows, columns in KINDS)
        raise ExportError(f"theta has shape {list(theta.shape)}, expected one of {kinds}")
    return KINDS[shape]


def _from_calls(theta: Tensor | None, calls: Sequence[SamplerCall]) -> tuple[Transformer, ...]:
    """Transformers as the network was seen to sample: one call for each slice of theta, or one for all."""
    if theta is None:
        return ()
    if len(calls) not in (1, theta.shape[1]):
        raise ExportError(f"theta is of {theta.shape[1]} transformers, but the network samples {len(calls)} times")
    sizes = [tuple(call.crop.shape[-2:]) for call in calls] * (theta.shape[1] // len(calls))
    return tuple(
        Transformer(name=f"transformer{index}", place="unknown", output_size=(height, width))
        for index, (height, width) in enumerate(sizes, start=1)
    )
