"""What every network of this package is: images in, logits and where it looked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from stn_serve.metadata import Resize
from training.stn.spatial_transformer import SpatialTransformer


class Answer(NamedTuple):
    """What a network says of a batch."""

    logits: Tensor
    """`[N, K]`, or `[N, P, K]` for sequences."""
    theta: Tensor | None
    """`[N, S, ...]`: for each of S transformers the map from its output to the image. None without transformers."""


@dataclass(frozen=True, slots=True)
class PlacedTransformer:
    """A spatial transformer and what it samples."""

    name: str
    place: str
    """`image`, or the feature map it stands before, such as `conv2`."""
    module: SpatialTransformer


class Network(nn.Module):
    """Takes images `[N, C, H, W]` in [0, 1] and gives an `Answer`; normalisation is part of the network."""

    input_size: tuple[int, int, int]
    """Channels, height and width."""
    resize: Resize = "stretch"
    """How images of other sizes are brought to it, as the network was trained: see `stn_serve.images.fit`."""

    def load_pretrained(self) -> None:
        """Fill in the weights that training starts with; there are none by default.

        Raises:
            WeightsError: they cannot be had, or do not fit.
        """

    def adopt(self, other: Network) -> None:
        """Begin with the weights of another network, by default one of the same architecture.

        Raises:
            ValueError: they do not fit.
        """
        try:
            self.load_state_dict(other.state_dict())
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit this network: {error}") from error

    def transformers(self) -> list[PlacedTransformer]:
        """The spatial transformers, in the order of theta's second axis."""
        return []
