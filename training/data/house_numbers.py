"""House numbers: sequences of one to five digits in colour."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor

from training.data.composed_numbers import LABELS, Crop, NumberComposer
from training.data.mnist import Source, load_digits
from training.data.svhn import StreetNumbers

TEST_SEED = 20110801
COMPOSED_VERSION = "composed house numbers 1"
"""Part of the data's hash; to be raised when the composer paints differently."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class HouseNumbersData:
    """Which house numbers."""

    family: Literal["house_numbers"]
    source: Literal["composed", "svhn"] = "composed"
    """`composed` makes images from fonts and handwriting; `svhn` reads (or downloads) photographs: 2.6 GB."""
    size: int = 64
    """Height and width of an image, in pixels."""
    crop: Crop = "tight"
    """`tight`: 30 % around the number, as the paper's 64 pixel images; `loose`: as its 128 pixel ones."""
    loosening_epochs: float = 0.0
    """Composed loose crops that are trained on begin as tight ones, and are as loose as those that measure the network
    after so many epochs: transformers follow a number that leaves the middle, and hardly find one that never was there.
    """
    handwriting: Source = "auto"
    """Where handwritten digits come from; as `source` of digits."""
    train_images: int = 50_000
    """Composed afresh in every epoch; of SVHN an epoch is all there is."""
    test_images: int = 5_000
    """Composed ones."""
    extra: bool = True
    """Train on SVHN's 202,353 extra images too, as the paper."""
    measured_on: Literal["test", "validation"] = "test"
    """Which of SVHN's images measure a network: hyper-parameters are chosen on those for validation."""

    def __post_init__(self) -> None:
        for name in ("size", "train_images", "test_images"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.loosening_epochs < 0:
            raise ValueError(f"loosening_epochs: expected 0 or more, got {self.loosening_epochs}")
        if self.loosening_epochs and (self.source, self.crop) != ("composed", "loose"):
            raise ValueError("loosening_epochs: only composed loose crops can begin as tight ones")


def open_house_numbers(config: HouseNumbersData, device: torch.device, seed: int) -> ComposedNumbers | StreetNumbers:
    """The house numbers of a configuration.

    Raises:
        DataError: they cannot be had, or are damaged.
    """
    if config.source == "composed":
        return ComposedNumbers(config, device, seed)
    return StreetNumbers(
        config.crop, config.size, extra=config.extra, measured_on=config.measured_on, device=device, seed=seed
    )


class ComposedNumbers:
    """Composed house numbers: images `[N, 3, size, size]`, classes `[N, 5]`.

    The training images of an epoch depend on seed and epoch alone; the test images are always the same, and their
    handwriting is of writers that are not in the training images.
    """

    labels = LABELS

    def __init__(self, config: HouseNumbersData, device: torch.device, seed: int = 0) -> None:
        digits = load_digits(config.handwriting)
        self.config = config
        self.source = f"composed house numbers (synthetic: fonts and {digits.source}, not SVHN), {config.crop} crops"
        self.device = device
        self.seed = seed
        train = digits.train_images, digits.train_labels
        test = digits.test_images, digits.test_labels
        self._composer = NumberComposer(config.size, config.crop, *train, device)
        self._test_composer = NumberComposer(config.size, config.crop, *test, device)

    @property
    def sha256(self) -> str:
        """Of the glyphs and of how they are put together."""
        digest = hashlib.sha256(f"{COMPOSED_VERSION} {self.config.crop} {self.config.size}".encode())
        for composer in (self._composer, self._test_composer):
            digest.update(composer.glyphs.cells.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.config.size, self.config.size

    @property
    def train_count(self) -> int:
        """Images in an epoch."""
        return self.config.train_images

    def train_batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Fresh batches, all full."""
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + epoch)
        count = max(1, self.train_count // batch_size)
        for index in range(count):
            yield self._composer(batch_size, generator, self._looseness(epoch + index / count))

    def _looseness(self, epochs: float) -> float:
        """Of training images after so many epochs."""
        return min(1.0, epochs / self.config.loosening_epochs) if self.config.loosening_epochs else 1.0

    def test_batches(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images."""
        generator = torch.Generator(self.device).manual_seed(TEST_SEED)
        for start in range(0, self.config.test_images, batch_size):
            yield self._test_composer(min(batch_size, self.config.test_images - start), generator)
