"""Ready-made localisation networks: any `nn.Module` from a map to features `[N, F]` will do as well."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn


class FullyConnectedLocalization(nn.Sequential):
    """Fully connected layers with ReLU on the flattened map.

    The defaults are those of the paper's ST-FCN (appendix A.4).

    Args:
        input_size: channels, height and width of the map.
        hidden: units of each layer.
        batch_norm: normalise after every layer. On a large map an optimiser such as Adam needs it: with thousands of
            inputs a unit, its first steps would throw every unit far off.
    """

    def __init__(
        self, input_size: Sequence[int], hidden: Sequence[int] = (32, 32, 32), *, batch_norm: bool = False
    ) -> None:
        sizes = (prod(input_size), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(inputs, outputs, bias=not batch_norm)]
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
        super().__init__(*layers)
        self.out_features = sizes[-1]


class ConvolutionalLocalization(nn.Module):
    """Convolutions on a reduced copy of the map, then one fully connected layer.

    The defaults are those of the paper's ST-CNN on digits (appendix A.4): halve the input, two 5x5 convolutions with
    20 filters, 2x2 max-pooling, 20 units.

    Args:
        input_size: channels, height and width of the map.
        filters: filters of each convolution.
        kernel_size: of every convolution.
        padding: of every convolution, with zeros.
        downsample: average this many elements a side first.
        pool: max-pool by 2 after each convolution ("each"), or once after the first ("first") or the last ("last").
        hidden: units of the fully connected layer.
        batch_norm: normalise after every convolution.

    Raises:
        ValueError: the map is too small for these convolutions, or an unknown `pool`.
    """

    def __init__(
        self,
        input_size: Sequence[int],
        *,
        filters: Sequence[int] = (20, 20),
        kernel_size: int = 5,
        padding: int = 0,
        downsample: int = 2,
        pool: str = "last",
        hidden: int = 20,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if pool not in ("each", "first", "last"):
            raise ValueError(f"pool: expected 'each', 'first' or 'last', got {pool!r}")
        pooled = {"each": range(len(filters)), "first": (0,), "last": (len(filters) - 1,)}[pool]
        channels = input_size[0]
        layers: list[nn.Module] = [nn.AvgPool2d(downsample)] if downsample > 1 else []
        for index, outputs in enumerate(filters):
            layers += [nn.Conv2d(channels, outputs, kernel_size, padding=padding, bias=not batch_norm)]
            layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
            layers += [nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if index in pooled else []
            channels = outputs
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(_flat_size(self.features, input_size), hidden), nn.ReLU())
        self.out_features = hidden

    def forward(self, maps: Tensor) -> Tensor:
        """Features `[N, hidden]` of maps `[N, C, H, W]`."""
        features: Tensor = self.hidden(self.features(maps))
        return features


def _flat_size(features: nn.Module, input_size: Sequence[int]) -> int:
    training = features.training
    try:
        with torch.no_grad():
            return int(features.eval()(torch.zeros(1, *input_size)).shape[1])
    except RuntimeError as error:
        raise ValueError(
            f"input_size: a map of {tuple(input_size)} is too small for this localisation network"
        ) from error
    finally:
        features.train(training)
