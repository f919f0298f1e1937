"""Classifiers of distorted digits: fully connected or convolutional, with or without a spatial transformer in front."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from training.models.network import Answer, Network, PlacedTransformer
from training.stn import (
    Affine,
    Attention,
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    Projective,
    Sampler,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Transform,
)

TransformName = Literal["none", "attention", "similarity", "affine", "projective", "thin_plate_spline"]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class DigitsModel:
    """Which classifier, and what stands in front of it. The defaults are the paper's (appendix A.4)."""

    family: Literal["digits"] = "digits"
    classifier: Literal["fcn", "cnn", "modern"] = "cnn"
    """`fcn` and `cnn` are the paper's; `modern` is ours: 3x3 convolutions with batch normalisation."""
    transform: TransformName = "affine"
    """`none` leaves the classifier alone with the distorted digit."""
    bounded: bool = False
    """Parametrise the transform through tanh and exp."""
    width: int = 64
    """Units of each hidden layer (fcn), filters of each convolution (cnn), or of the first of three stages (modern)."""
    localization: Literal["paper", "modern"] = "paper"
    """`paper` fits the classifier: three fully connected layers or two convolutions; `modern` is deeper, normalised."""
    output_size: int | None = None
    """Height and width that the transformer samples; the input's by default."""
    supersample: int = 1
    """2 averages 2x2 samples for each element: the paper's pooling after the transformer on RTS and TC."""
    start_scale: float = 1.0
    """Part of the image, across, that the transformer looks at before it has learned: 1 is the identity."""
    head_std: float = 0.0
    """Of the regression layer's initial weights; 0 starts every image alike."""
    dropout: float = 0.0
    """Before the last layer of the modern classifier."""


class DigitNetwork(Network):
    """A classifier of digits `[N, 1, H, W]`, after at most one spatial transformer.

    Args:
        config: sizes and kinds.
        input_size: channels, height and width of the images.
        classes: how many.
    """

    def __init__(self, config: DigitsModel, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, _ = input_size
        self.input_size = input_size
        sampled = config.output_size or height
        side = sampled // config.supersample
        self.transformer: SpatialTransformer | None = None
        self.pool: nn.Module = nn.Identity()
        if config.transform != "none":
            transform = _transform(config, sampled)
            self.transformer = SpatialTransformer(
                _localization(config, input_size),
                transform,
                Sampler(supersample=config.supersample),
                start=transform.start((0, 0), config.start_scale),
                head_std=config.head_std,
            )
        elif side != height:
            self.pool = nn.AdaptiveAvgPool2d(side)
        self.classifier = _classifier(config, (channels, side, side), classes)

    def forward(self, images: Tensor) -> Answer:
        """Logits `[N, classes]` and theta `[N, 1, ...]`."""
        if self.transformer is None:
            return Answer(self.classifier(self.pool(images)), None)
        warped, theta = self.transformer(images)
        return Answer(self.classifier(warped), theta.unsqueeze(1))

    def transformers(self) -> list[PlacedTransformer]:
        """The one in front, if any."""
        return [] if self.transformer is None else [PlacedTransformer("transformer", "image", self.transformer)]


def _transform(config: DigitsModel, side: int) -> Transform:
    classes: dict[str, type[Transform]] = {
        "attention": Attention,
        "similarity": Similarity,
        "affine": Affine,
        "projective": Projective,
        "thin_plate_spline": ThinPlateSpline,
    }
    return classes[config.transform]((side, side), bounded=config.bounded)


def _localization(config: DigitsModel, input_size: tuple[int, int, int]) -> nn.Module:
    if config.localization == "modern":
        return ConvolutionalLocalization(
            input_size, filters=(24, 48, 48), kernel_size=3, padding=1, pool="each", hidden=64, batch_norm=True
        )
    if config.classifier == "fcn":
        return FullyConnectedLocalization(input_size)
    return ConvolutionalLocalization(input_size)


def _classifier(config: DigitsModel, input_size: tuple[int, int, int], classes: int) -> nn.Sequential:
    build = {"fcn": fully_connected, "cnn": convolutional, "modern": modern}[config.classifier]
    return build(config, input_size, classes)


def fully_connected(config: DigitsModel, input_size: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The paper's FCN: two hidden layers and the classifier."""
    hidden = FullyConnectedLocalization(input_size, (config.width, config.width))
    return nn.Sequential(hidden, nn.Linear(config.width, classes))


def convolutional(config: DigitsModel, input_size: tuple[int, int, int], classes: int) -> nn.Sequential:
    """The paper's CNN: 9x9 and 7x7 convolutions without padding, each max-pooled by two, and the classifier.

    Poolings keep the odd last row and column, as the paper's Caffe did: with 21x21 pixels after the transformer there
    would be nothing left otherwise.
    """
    channels, side, _ = input_size
    after_first = ceil((side - 8) / 2)
    after_second = ceil((after_first - 6) / 2)
    return nn.Sequential(
        nn.Conv2d(channels, config.width, 9),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(config.width, config.width, 7),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(config.width * after_second**2, classes),
    )


def modern(config: DigitsModel, input_size: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Ours: five 3x3 convolutions in three stages with batch normalisation, and the classifier."""
    channels, side, _ = input_size
    first, second, third = config.width, 2 * config.width, 4 * config.width
    return nn.Sequential(
        *_normalised_convolution(channels, first),
        *_normalised_convolution(first, first),
        nn.MaxPool2d(2),
        *_normalised_convolution(first, second),
        *_normalised_convolution(second, second),
        nn.MaxPool2d(2),
        *_normalised_convolution(second, third),
        nn.Flatten(),
        nn.Dropout(config.dropout),
        nn.Linear(third * (side // 4) ** 2, classes),
    )


def _normalised_convolution(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def count_parameters(network: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(torch.numel(parameter) for parameter in network.parameters() if parameter.requires_grad)
