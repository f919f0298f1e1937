"""Every network that a recipe can name."""

from __future__ import annotations

from training.models.digits import DigitNetwork, DigitsModel
from training.models.network import Network

ModelConfig = DigitsModel
"""The `[model]` of a recipe; `family` says which."""


def build(config: ModelConfig, input_size: tuple[int, int, int], classes: int) -> Network:
    """The network of a configuration, with fresh weights."""
    return DigitNetwork(config, input_size, classes)
