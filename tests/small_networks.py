"""Small networks with transformers of every kind, for the tests of the export. Untrained, but theta is no identity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.graph_contract import GraphContract
from export.onnx_export import export_onnx
from export.parity import ParityReport, Precision, measure_parity
from export.repository import draft
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import (
    Affine,
    Affine3d,
    Attention,
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    ParallelSpatialTransformer,
    Projective,
    Sampler,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Transform,
    Translation,
    compose,
    tile,
)

LABELS = ("ant", "bee", "cat")
SIZE = (10, 8)


class SmallNetwork(Network):
    """A transformer on the image, if any, and one linear layer."""

    def __init__(
        self,
        transform: Transform | None,
        sampler: Sampler | None = None,
        *,
        input_size: tuple[int, int, int] = (1, 14, 12),
        head_std: float = 0.1,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.input_size = input_size
        self.transformer: SpatialTransformer | None = None
        if transform:
            # Pooled, so that large images need no large layer.
            reduce = nn.Sequential(nn.AdaptiveAvgPool2d(2), FullyConnectedLocalization((input_size[0], 2, 2), (8,)))
            self.transformer = SpatialTransformer(reduce, transform, sampler, features=8, head_std=head_std)
        self.classifier = nn.Linear(self._features(), len(LABELS))
        self.eval()

    def forward(self, images: Tensor) -> Answer:
        warped, theta = self._warp(images)
        return Answer(self.classifier(warped.flatten(1)), None if theta is None else theta.unsqueeze(1))

    def transformers(self) -> list[PlacedTransformer]:
        return [PlacedTransformer("look", "image", self.transformer)] if self.transformer else []

    def _warp(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.transformer:
            return images, None
        warped, theta = self.transformer(images)
        return warped, theta

    @torch.no_grad()
    def _features(self) -> int:
        return self._warp(torch.zeros(1, *self.input_size))[0].numel()


class VolumeNetwork(SmallNetwork):
    """The image, repeated in depth, through a transformer of volumes."""

    def _warp(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.transformer
        warped, theta = self.transformer(images.unsqueeze(2).repeat(1, 1, 4, 1, 1), context=images)
        return warped, theta


class SequenceNetwork(Network):
    """Two transformers side by side on one localisation network with batch normalisation; a sequence of two."""

    input_size = (1, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        transform = Attention((8, 8))
        localization = ConvolutionalLocalization(self.input_size, filters=(4,), hidden=8, batch_norm=True)
        self.looks = ParallelSpatialTransformer(localization, transform, tile(transform, 2), head_std=0.1)
        self.classifier = nn.Linear(64, len(LABELS))
        norm = next(module for module in self.modules() if isinstance(module, nn.BatchNorm2d))
        assert norm.running_mean is not None
        nn.init.uniform_(norm.running_mean, 0.1, 0.5)
        nn.init.uniform_(norm.weight, 0.5, 2)
        self.eval()

    def forward(self, images: Tensor) -> Answer:
        warped, theta = self.looks(images)
        return Answer(self.classifier(warped.flatten(2)), theta)

    def transformers(self) -> list[PlacedTransformer]:
        return [PlacedTransformer(name, "image", self.looks) for name in ("left", "right")]


class SeriesNetwork(Network):
    """Two separate transformers, one on what the other saw, both untrained: their regression layers are equal."""

    input_size = (1, 14, 12)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = SpatialTransformer(FullyConnectedLocalization(self.input_size, (8,)), Affine((14, 12)))
        self.second = SpatialTransformer(FullyConnectedLocalization(self.input_size, (8,)), Affine((14, 12)))
        self.classifier = nn.Linear(14 * 12, len(LABELS))
        self.eval()

    def forward(self, images: Tensor) -> Answer:
        warped, outer = self.first(images)
        warped, inner = self.second(warped)
        return Answer(self.classifier(warped.flatten(1)), torch.stack([outer, compose(outer, inner)], dim=1))

    def transformers(self) -> list[PlacedTransformer]:
        return [PlacedTransformer("first", "image", self.first), PlacedTransformer("second", "crop", self.second)]


NETWORKS: dict[str, Callable[[], Network]] = {
    "none": lambda: SmallNetwork(None),
    "translation": lambda: SmallNetwork(Translation(SIZE, scale=0.5)),
    "similarity": lambda: SmallNetwork(Similarity(SIZE, bounded=True)),
    "affine": lambda: SmallNetwork(Affine(SIZE)),
    "bounded affine": lambda: SmallNetwork(Affine(SIZE, bounded=True)),
    "projective": lambda: SmallNetwork(Projective(SIZE)),
    "thin_plate_spline": lambda: SmallNetwork(ThinPlateSpline(SIZE, control_size=3, regularization=0.1)),
    "affine_3d": lambda: VolumeNetwork(Affine3d((3, 6, 5))),
    "nearest": lambda: SmallNetwork(Affine(SIZE), Sampler("nearest")),
    "bicubic": lambda: SmallNetwork(Affine(SIZE), Sampler("bicubic", "reflection")),
    "supersampled": lambda: SmallNetwork(Affine(SIZE), Sampler(padding="fill", fill=0.5, supersample=2)),
    "colour": lambda: SmallNetwork(Affine(SIZE), input_size=(3, 14, 12)),
    "sequence": SequenceNetwork,
    "series": SeriesNetwork,
}


@dataclass(frozen=True)
class Exported:
    network: Network
    model: onnx.ModelProto
    contract: GraphContract

    def copy(self) -> onnx.ModelProto:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.model)
        return copied


@cache
def exported(name: str) -> Exported:
    """One of `NETWORKS`; an export takes a second or two, so that tests share them."""
    return export(NETWORKS[name]())


def export(network: Network) -> Exported:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        contract = export_onnx(network, LABELS, path)
        return Exported(network, onnx.load(path), contract)


def parity(
    of: Exported, repository: Path, model: onnx.ModelProto | None = None, precision: Precision = "fp32"
) -> ParityReport:
    """Of the exported network with its own graph, or with another one."""
    with draft(repository, "small") as entry:
        onnx.save(model or of.model, entry.version_directory / "model.onnx")
        config = entry.configure(of.contract, 9)
        images = noise(5, of.network.input_size)
        return measure_parity(of.network, entry.directory, entry.version, config, images, precision)


def noise(count: int, input_size: tuple[int, int, int]) -> NDArray[np.uint8]:
    channels, height, width = input_size
    return np.random.default_rng(1).integers(0, 256, (count, height, width, channels), np.uint8)


def node(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def set_attribute(changed: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in changed.attribute if attribute.name != name]
    del changed.attribute[:]
    changed.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])
