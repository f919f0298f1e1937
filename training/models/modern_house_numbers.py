"""Our reader of house numbers: a series of transformers that all sample the image, and a small normalised network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.models.house_numbers import POSITIONS, HouseNumbersModel, scaled, standardised
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import Affine, ConvolutionalLocalization, Sampler, SpatialTransformer

REDUCED = 2
"""Localisation networks see the image reduced by this."""
CHANNELS = (32, 48, 96, 160)
SQUEEZED = 32
"""Channels of the head: it keeps where something is, and drops most of what."""
HIDDEN = 384


class ModernHouseNumberNetwork(Network):
    """Reads numbers of up to five digits from images `[N, C, H, W]`: logits `[N, 5, classes]`.

    Each transformer looks at what the one before it saw, and corrects where to look: its theta is composed with theirs,
    and the image itself is sampled (inverse compositional networks, Lin and Lucey 2017). The paper's samples feature
    maps of feature maps instead, each blurred by the last.

    Args:
        config: sizes and kinds.
        input_size: channels, height and width of the images; each side a multiple of 16.
        classes: how many, the null class among them.

    Raises:
        ValueError: an input size that is no multiple of 16.
    """

    def __init__(self, config: HouseNumbersModel, input_size: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        if input_size[1] % 16 or input_size[2] % 16:
            raise ValueError(f"input_size: expected sides that are multiples of 16, got {input_size[1:]}")
        self.input_size = input_size
        self.classes = classes
        count = {"none": 0, "single": 1, "multi": 4}[config.transformers]
        self.cascade = nn.ModuleList(
            _transformer(config, input_size, last=index == count - 1) for index in range(count)
        )
        self.reader = _reader(config, input_size, classes)

    def forward(self, images: Tensor) -> Answer:
        """Logits `[N, 5, classes]` and theta `[N, S, 2, 3]`, each from what is seen to the image; None without any."""
        images = standardised(images)
        seen, theta, thetas = F.avg_pool2d(images, REDUCED), None, list[Tensor]()
        for transformer in self.cascade:
            seen, theta = transformer(images, seen, theta)
            thetas.append(theta)
        logits = self.reader(seen if thetas else images).unflatten(1, (POSITIONS, self.classes))
        return Answer(logits, torch.stack(thetas, dim=1) if thetas else None)

    def transformers(self) -> list[PlacedTransformer]:
        """In series."""
        return [
            PlacedTransformer(f"transformer{index}", "image", module)  # type: ignore[arg-type]  # what a ModuleList holds
            for index, module in enumerate(self.cascade, start=1)
        ]


def _transformer(config: HouseNumbersModel, input_size: tuple[int, int, int], *, last: bool) -> SpatialTransformer:
    """The last sees as much as the image has; those before it what a localisation network needs, without aliasing."""
    channels, height, width = input_size
    localization = ConvolutionalLocalization(
        (channels, height // REDUCED, width // REDUCED),
        filters=(16, 32),
        kernel_size=3,
        padding=1,
        downsample=1,
        pool="each",
        hidden=32,
        batch_norm=True,
    )
    sampler = Sampler(supersample=1 if last else REDUCED)
    return SpatialTransformer(localization, Affine((height, width), bounded=True), sampler, head_std=config.head_std)


def _reader(config: HouseNumbersModel, input_size: tuple[int, int, int], classes: int) -> nn.Sequential:
    channels, height, width = input_size
    a, b, c, d = (scaled(size, config.width) for size in CHANNELS)
    hidden = scaled(HIDDEN, config.width)
    return nn.Sequential(
        *_convolution(channels, a, 5, stride=2),
        *_convolution(a, b, 3),
        *_convolution(b, b, 3),
        nn.MaxPool2d(2),
        *_convolution(b, c, 3),
        *_convolution(c, c, 3),
        nn.MaxPool2d(2),
        *_convolution(c, d, 3),
        *_convolution(d, d, 3),
        *_convolution(d, SQUEEZED, 1),
        nn.Flatten(),
        nn.Linear(SQUEEZED * (height // 8) * (width // 8), hidden),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(hidden, POSITIONS * classes),
    )


def _convolution(inputs: int, outputs: int, kernel_size: int, *, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
