"""Distorted digits: MNIST through the paper's distortions, fresh in every epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor

from training.data.distortions import Distorter, Distortion
from training.data.mnist import Source, load_digits

TEST_SEED = 20150605


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class DigitsData:
    """Which digits, and what happens to them."""

    family: Literal["digits"] = "digits"
    source: Source = "auto"
    distortion: Distortion = field(default_factory=Distortion)
    test_copies: int = 1
    """How many distorted copies of every test digit are tested, against chance in the distortion."""


class Digits:
    """Distorted digits on a device: images `[N, 1, canvas, canvas]` in [0, 1], labels `[N]`.

    The training images of an epoch depend on seed and epoch alone; the test images are always the same.
    """

    labels = tuple("0123456789")

    def __init__(self, config: DigitsData, device: torch.device, seed: int = 0) -> None:
        digits = load_digits(config.source)
        self.config = config
        self.source = digits.source
        self.sha256 = digits.sha256
        self.device = device
        self.seed = seed
        self._distort = Distorter(config.distortion, device)
        self._train = _to_device(digits.train_images, digits.train_labels, device)
        self._test = _to_device(digits.test_images, digits.test_labels, device)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 1, self.config.distortion.canvas, self.config.distortion.canvas

    @property
    def train_count(self) -> int:
        """Images in an epoch."""
        return len(self._train[1])

    def train_batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, freshly distorted batches; what does not fill the last one waits for another epoch."""
        generator = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + epoch)
        images, labels = self._train
        order = torch.randperm(len(labels), generator=generator, device=self.device)
        for indices in order.split(min(batch_size, len(labels))):
            if len(indices) == min(batch_size, len(labels)):
                yield self._distorted(images[indices], generator), labels[indices]

    def test_batches(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images, `test_copies` times each."""
        generator = torch.Generator(self.device).manual_seed(TEST_SEED)
        images, labels = self._test
        for _ in range(self.config.test_copies):
            for chunk, answers in zip(images.split(batch_size), labels.split(batch_size), strict=True):
                yield self._distorted(chunk, generator), answers

    def _distorted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self._distort(images[:, None].float() / 255, self._train[0], generator)


def _to_device(images: object, labels: object, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(images, device=device), torch.tensor(labels, device=device, dtype=torch.long)
