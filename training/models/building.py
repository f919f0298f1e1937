"""Every network that a recipe can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Tag

from training.data.family import family_of
from training.models.digits import DigitNetwork, DigitsModel
from training.models.house_numbers import HouseNumberNetwork, HouseNumbersModel
from training.models.modern_house_numbers import ModernHouseNumberNetwork
from training.models.network import Network

ModelConfig = Annotated[
    Annotated[DigitsModel, Tag("digits")] | Annotated[HouseNumbersModel, Tag("house_numbers")],
    Discriminator(family_of),
]
"""The `[model]` of a recipe; `family` says which."""


def build(config: ModelConfig, input_size: tuple[int, int, int], classes: int) -> Network:
    """The network of a configuration, with fresh weights."""
    if isinstance(config, DigitsModel):
        return DigitNetwork(config, input_size, classes)
    if config.network == "modern":
        return ModernHouseNumberNetwork(config, input_size, classes)
    return HouseNumberNetwork(config, input_size, classes)
