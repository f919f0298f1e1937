"""Readers of house numbers: the paper's CNN, ST-CNN Single and ST-CNN Multi (section 4.2, appendix A.5), and ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from training.models.image_convolution import ImageConv2d
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import Affine, ConvolutionalLocalization, FullyConnectedLocalization, SpatialTransformer, compose

POSITIONS = 5
CHANNELS = (48, 64, 128, 160, 192, 192, 192, 192)
"""Filters of the eight 5x5 convolutions."""
POOLED = (0, 2, 5, 7)
"""Convolutions that a 2x2 max-pooling follows."""
HIDDEN = 3072
"""Units of each of the three fully connected layers: section 4.2 counts eleven hidden layers, eight convolutions."""
MULTI = 4
"""Convolutions with a transformer before them in ST-CNN Multi: the first four."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class HouseNumbersModel:
    """Which reader. The defaults are the paper's."""

    family: Literal["house_numbers"]
    network: Literal["paper", "modern"] = "paper"
    """`modern` is ours: 3x3 convolutions, a slim head, and transformers that all sample the image."""
    transformers: Literal["none", "single", "multi"] = "multi"
    """`single` stands before the image, `multi` before each of the first four convolutions (modern: four in series)."""
    width: float = 1.0
    """Scales channels and units, except the 32 of localisation networks; channels are multiples of eight."""
    batch_norm: bool = False
    """After every layer but the last, for schedules shorter than the paper's. The modern network has it anyway."""
    dropout: float = 0.5
    """After every layer but the first convolution; of the modern network, before the last layer."""
    head_std: float = 0.0
    """Of the regression layers' initial weights; 0 starts at exactly the identity."""

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width: expected a positive number, got {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 up to below 1, got {self.dropout}")


class HouseNumberNetwork(Network):
    """Reads numbers of up to five digits from images `[N, C, H, W]`: logits `[N, 5, classes]`.

    Args:
        config: sizes and kinds.
        input_size: channels, height and width of the images; each side a multiple of 16.
        classes: how many, the null class among them.

    Raises:
        ValueError: an input size that is no multiple of 16.
    """

    def __init__(self, config: HouseNumbersModel, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = input_size
        if height % 16 or width % 16:
            raise ValueError(f"input_size: expected sides that are multiples of 16, got {height}x{width}")
        self.input_size = input_size
        self.classes = classes
        stages, placed = nn.ModuleList(), {}
        for index, size in enumerate(CHANNELS):
            name = f"transformer{index + 1}"
            if index < {"none": 0, "single": 1, "multi": MULTI}[config.transformers]:
                placed[name] = _transformer(config, (channels, height, width))
            outputs = scaled(size, config.width)
            stages.append(_stage(config, index, channels, outputs))
            channels = outputs
            if index in POOLED:
                height, width = height // 2, width // 2
        self.stages = stages
        self.placed = nn.ModuleDict(placed)
        self.reader = _reader(config, channels * height * width, classes)

    def forward(self, images: Tensor) -> Answer:
        """Logits `[N, 5, classes]` and theta `[N, S, 2, 3]`, each composed onto the image; None without transformers.

        Convolutions with same padding and poolings keep normalised coordinates, so that what a transformer before a
        later convolution samples can be followed back through those before it.
        """
        maps, thetas = standardised(images), list[Tensor]()
        for index, stage in enumerate(self.stages):
            if index < len(self.placed):
                maps, theta = self.placed[f"transformer{index + 1}"](maps)
                thetas.append(compose(thetas[-1], theta) if thetas else theta)
            maps = stage(maps)
        logits = self.reader(maps).unflatten(1, (POSITIONS, self.classes))
        return Answer(logits, torch.stack(thetas, dim=1) if thetas else None)

    def adopt(self, other: Network) -> None:
        """Begin with another network's weights; from one for images of another size, with its convolutions.

        These fit images of any size; what is fully connected to a map, the transformers and the reader, begins anew.
        """
        if not isinstance(other, HouseNumberNetwork) or other.input_size == self.input_size:
            super().adopt(other)
            return
        try:
            self.stages.load_state_dict(other.stages.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the convolutions do not fit this network: {error}") from error

    def transformers(self) -> list[PlacedTransformer]:
        """In the order of the convolutions they stand before."""
        places = ("image", *(f"conv{index}" for index in range(2, MULTI + 1)))
        return [
            PlacedTransformer(name, place, module)  # type: ignore[arg-type]  # what a ModuleDict holds
            for (name, module), place in zip(self.placed.items(), places, strict=False)
        ]


def standardised(images: Tensor) -> Tensor:
    """Each image with mean 0 and deviation 1 or less: numbers are read by contrast, not by the light of the day."""
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    return centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 0.05)


def scaled(size: int, width: float, multiple: int = 8) -> int:
    """Channels or units of a layer at a width."""
    return max(multiple, round(size * width / multiple) * multiple)


def _transformer(config: HouseNumbersModel, input_size: tuple[int, int, int]) -> SpatialTransformer:
    localization: nn.Module
    if config.transformers == "multi":
        localization = FullyConnectedLocalization(input_size, (32, 32), batch_norm=config.batch_norm)
    else:
        convolutions = ConvolutionalLocalization(
            input_size,
            filters=(scaled(32, config.width),) * 2,
            padding=2,
            downsample=1,
            pool="first",
            hidden=32,
            batch_norm=config.batch_norm,
        )
        last = FullyConnectedLocalization((32,), (32,), batch_norm=config.batch_norm)
        localization = nn.Sequential(convolutions, last)
    return SpatialTransformer(localization, Affine(input_size[1:]), features=32, head_std=config.head_std)


def _stage(config: HouseNumbersModel, index: int, inputs: int, outputs: int) -> nn.Sequential:
    kind = ImageConv2d if index == 0 else partial(nn.Conv2d, padding=2)
    layers: list[nn.Module] = [kind(inputs, outputs, 5, bias=not config.batch_norm)]
    layers += [nn.BatchNorm2d(outputs)] if config.batch_norm else []
    layers += [nn.ReLU()]
    layers += [nn.MaxPool2d(2)] if index in POOLED else []
    layers += [nn.Dropout(config.dropout)] if config.dropout and index > 0 else []
    return nn.Sequential(*layers)


def _reader(config: HouseNumbersModel, features: int, classes: int) -> nn.Sequential:
    hidden = scaled(HIDDEN, config.width)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (features, hidden, hidden):
        layers += [nn.Linear(inputs, hidden, bias=not config.batch_norm)]
        layers += [nn.BatchNorm1d(hidden), nn.ReLU()] if config.batch_norm else [nn.ReLU()]
        layers += [nn.Dropout(config.dropout)] if config.dropout else []
    return nn.Sequential(*layers, nn.Linear(hidden, POSITIONS * classes))


def count_layers(network: nn.Module) -> dict[str, int]:
    """How many convolutions and fully connected layers there are."""
    modules: Sequence[nn.Module] = list(network.modules())
    return {kind.__name__: sum(isinstance(module, kind) for module in modules) for kind in (nn.Conv2d, nn.Linear)}
