"""Every data set that a recipe can name, and what they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Protocol

import torch
from pydantic import Discriminator, Tag
from torch import Tensor

from training.data.birds import BirdsData, list_birds
from training.data.digits import Digits, DigitsData
from training.data.family import family_of
from training.data.folder import FolderData, list_folder
from training.data.house_numbers import HouseNumbersData, open_house_numbers
from training.data.photos import Photos

DataConfig = Annotated[
    Annotated[DigitsData, Tag("digits")]
    | Annotated[HouseNumbersData, Tag("house_numbers")]
    | Annotated[BirdsData, Tag("birds")]
    | Annotated[FolderData, Tag("folder")],
    Discriminator(family_of),
]
"""The `[data]` of a recipe; `family` says which."""


class DataSet(Protocol):
    """Labelled images on a device: images `[N, C, H, W]` in [0, 1], classes `[N]`, or `[N, P]` of sequences."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def source(self) -> str:
        """What the images are and where they come from, for people."""

    @property
    def sha256(self) -> str:
        """Of all images and labels, so that a model can say what it was trained on."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""

    @property
    def train_count(self) -> int:
        """Images in an epoch."""

    def train_batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented batches that depend on seed and epoch alone."""

    def test_batches(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images, always the same."""


def open_data(config: DataConfig, device: torch.device, seed: int) -> DataSet:
    """The data set of a configuration.

    Raises:
        DataError: it cannot be had, or is damaged.
    """
    if isinstance(config, DigitsData):
        return Digits(config, device, seed)
    if isinstance(config, HouseNumbersData):
        return open_house_numbers(config, device, seed)
    if isinstance(config, BirdsData):
        photos = list_birds(config.path)
    else:
        photos = list_folder(config.path, config.test_fraction)
    return Photos(photos, config.size, config.augmentation, device, seed)
