"""Backbones from the `transformers` library: networks trained on ImageNet or more, cut off before their classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Triple = tuple[float, float, float]

BATCH_NORM_MOMENTUM = 0.1
"""Of running statistics. MobileNet's in `transformers` is TensorFlow's number, which means the opposite in torch."""


class Backbone(nn.Module):
    """Photos `[N, 3, H, W]` in [0, 1] to a feature map `[N, out_features, h, w]`; normalisation is part of it.

    Args:
        model: of `transformers`, without a head: its `last_hidden_state` is a map, or tokens of square patches.
        mean: of each colour, as the model was trained.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Triple, std: Triple) -> None:  # noqa: ANN401 - `transformers` is imported late
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BATCH_NORM_MOMENTUM
        self.out_features = self._count_features()

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map."""
        hidden: Tensor = self.model((images - self.mean) / self.std).last_hidden_state
        if hidden.dim() == 4:
            return hidden
        rows, columns = (size // self.model.config.patch_size for size in images.shape[2:])
        patches = hidden[:, -rows * columns :]  # before them stand a class token and registers
        maps: Tensor = patches.mT.unflatten(2, (rows, columns))
        return maps

    def _count_features(self) -> int:
        self.eval()
        with torch.no_grad():
            return int(self(torch.zeros(1, 3, 224, 224)).shape[1])
