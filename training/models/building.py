"""Every network that a recipe can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Tag

from training.data.family import family_of
from training.models.digits import DigitNetwork, DigitsModel
from training.models.house_numbers import HouseNumberNetwork, HouseNumbersModel
from training.models.modern_house_numbers import ModernHouseNumberNetwork
from training.models.network import Network
from training.models.photos import PhotoNetwork, PhotosModel

ModelConfig = Annotated[
    Annotated[DigitsModel, Tag("digits")]
    | Annotated[HouseNumbersModel, Tag("house_numbers")]
    | Annotated[PhotosModel, Tag("photos")],
    Discriminator(family_of),
]
"""The `[model]` of a recipe; `family` says which."""


def resolve(config: ModelConfig) -> ModelConfig:
    """With what can only be looked up where training is, so that a checkpoint describes its network whole.

    Raises:
        WeightsError: a pretrained network is asked for that is not there.
    """
    return config.resolved() if isinstance(config, PhotosModel) else config


def build(config: ModelConfig, input_size: tuple[int, int, int], classes: int) -> Network:
    """The network of a configuration, with fresh weights."""
    if isinstance(config, DigitsModel):
        return DigitNetwork(config, input_size, classes)
    if isinstance(config, PhotosModel):
        return PhotoNetwork(config, input_size, classes)
    if config.network == "modern":
        return ModernHouseNumberNetwork(config, input_size, classes)
    return HouseNumberNetwork(config, input_size, classes)
