"""Walls and doors to put numbers on, and what a camera does to them: batches in plain tensor arithmetic."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.draws import Draws
from training.stn.transform import target_axis

Colors = Tensor
"""`[N, 3, 1, 1]`, from 0 to 1."""


def colors(brightness: Tensor, draws: Draws) -> Colors:
    """A random hue for every brightness `[N]`."""
    hue = draws.uniform(-0.3, 0.3, len(brightness), 3)
    hue = (hue - hue.mean(-1, keepdim=True)) * draws.uniform(0, 1, len(brightness), 1)
    return (brightness[:, None] + hue).clamp(0, 1)[:, :, None, None]


def walls(base: Colors, size: int, draws: Draws) -> Tensor:
    """Backgrounds `[N, 3, size, size]` around a colour: gradients, blotches, joints, the edges of other things."""
    count = len(base)
    image = base + _slope(count, size, draws) * draws.uniform(0, 0.12, count, 3, 1, 1)
    image = image + _blotches(count, size, draws)
    image = image + _stripes(count, size, draws) * draws.uniform(0.02, 0.08, count, 1, 1, 1)
    for _ in range(2):
        wedge = _edge(count, size, draws) * _edge(count, size, draws)
        opacity = draws.uniform(0, 0.6, count, 1, 1, 1) * draws.chance(0.4, count, 1, 1, 1)
        image = torch.lerp(image, colors(draws.uniform(0, 1, count), draws), wedge * opacity)
    return image


def lights(image: Tensor, draws: Draws) -> Tensor:
    """The image under uneven light, a third of the time with the edge of a shadow across it."""
    count, size = len(image), image.shape[-1]
    light = 1 + _slope(count, size, draws) * draws.uniform(0, 0.2, count, 1, 1, 1)
    depth = draws.uniform(0.15, 0.4, count, 1, 1, 1) * draws.chance(0.35, count, 1, 1, 1)
    return image * light * (1 - depth * _edge(count, size, draws))


def photographed(image: Tensor, draws: Draws) -> Tensor:
    """What a camera makes of it: out of focus or shaken, under- or overexposed, noisy."""
    count = len(image)
    for distance in (1, 1, 2):
        for dim in (2, 3):
            amount = draws.uniform(-1, 1, count, 1, 1, 1).clamp(min=0)
            image = torch.lerp(image, _smeared(image, distance, dim), amount)
    contrast, brightness = draws.uniform(0.7, 1.2, count, 1, 1, 1), draws.normal(0.05, count, 1, 1, 1)
    image = (image - 0.5) * contrast + 0.5 + brightness
    noise = draws.normal(1, *image.shape) * draws.uniform(0, 0.06, count, 1, 1, 1)
    return (image + noise).clamp(0, 1)


def _smeared(image: Tensor, distance: int, dim: int) -> Tensor:
    """Each pixel averaged with those at a distance on both sides. Slices cost a tenth of what pooling does on a CPU."""
    length = image.shape[dim] - 2 * distance
    inner = image.narrow(dim, distance, length)
    middle = (image.narrow(dim, 0, length) + image.narrow(dim, 2 * distance, length)).add_(inner, alpha=2).mul_(0.25)
    ends = image.narrow(dim, 0, distance), image.narrow(dim, length + distance, distance)
    return torch.cat([ends[0], middle, ends[1]], dim)


def _position(count: int, size: int, draws: Draws) -> Tensor:
    """Along a random direction, `[N, 1, size, size]`: about -1 to 1 across the image."""
    angle = draws.uniform(0, 2 * pi, count, 1, 1, 1)
    axis = target_axis(size).float().to(angle.device)
    return torch.cos(angle) * axis + torch.sin(angle) * axis[:, None]


def _slope(count: int, size: int, draws: Draws) -> Tensor:
    return _position(count, size, draws)


def _edge(count: int, size: int, draws: Draws) -> Tensor:
    """1 on one side of a random straight line, 0 on the other."""
    offset = draws.uniform(-0.9, 0.9, count, 1, 1, 1)
    sharpness = draws.uniform(0.1, 1, count, 1, 1, 1) * size
    return torch.sigmoid((_position(count, size, draws) - offset) * sharpness)


def _blotches(count: int, size: int, draws: Draws) -> Tensor:
    """Noise of three scales."""
    noise = torch.zeros(count, 1, 1, 1, device=draws.generator.device)
    for cells in (3, 7, 17):
        fine = draws.normal(1, count, 1, cells, cells) * draws.uniform(0, 0.06, count, 1, 1, 1)
        noise = fine + F.interpolate(noise, (cells, cells), mode="bilinear", align_corners=False)
    return F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)


def _stripes(count: int, size: int, draws: Draws) -> Tensor:
    """Joints between boards or bricks on some images."""
    phase = _position(count, size, draws) * draws.uniform(4, 25, count, 1, 1, 1)
    return torch.cos(phase + draws.uniform(0, 2 * pi, count, 1, 1, 1)) * draws.chance(0.4, count, 1, 1, 1)
