"""A localisation network that says where things are, not what: spatial softmax on the maps of a frozen backbone."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from training.models.backbone import Backbone
from training.stn.transform import target_axis

SHARPNESS = 10.0
"""Of the softmax at the start, times the mean of a place's features."""


class KeypointLocalization(nn.Module):
    """Expected positions of keypoints, each under a softmax over the places of the backbone's last map.

    (Spatial softmax: Levine, Finn, Darrell, Abbeel 2016.) Every keypoint begins where the map is most active, which in
    a network that knows the classes is where the thing is; a 1x1 convolution learns what else to follow. It has a
    hundredth of the weights of a fully connected layer on the map, and the backbone stays as it is: on a few thousand
    photos it learns where the paper's overfits or, at the paper's learning rate, stands still.

    Args:
        backbone: what it looks at.
        count: how many keypoints.
    """

    def __init__(self, backbone: Backbone, count: int) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.score = nn.Conv2d(backbone.out_features, count, 1, bias=False)
        nn.init.constant_(self.score.weight, SHARPNESS / backbone.out_features)
        self.out_features = 2 * count

    def train(self, mode: bool = True) -> Self:
        """The backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Keypoints `[N, 2 count]`, x and y of each, normalised to [-1, 1]."""
        with torch.no_grad():
            maps = self.backbone(images)
        scores = self.score(maps).float()
        y, x = (target_axis(size).to(scores) for size in scores.shape[2:])
        shares = scores.flatten(2).softmax(-1).unflatten(-1, scores.shape[2:])
        return torch.stack([shares.sum(2) @ x, shares.sum(3) @ y], dim=-1).flatten(1)
