"""The paper's distorted digits, made on the device, a batch at a time, through our own grids (appendix A.4).

Every set is one chain of maps from the canvas back to the digit, sampled once:

    canvas -> elastic (E) -> place, scale, rotate (R, RTS, P, E, TC) -> perspective (P) -> digit
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor
from torch.nn import functional as F

from training.stn.composition import compose
from training.stn.matrix import Affine
from training.stn.projective import Projective
from training.stn.sampler import Sampler
from training.stn.thin_plate_spline import ThinPlateSpline

DIGIT = 28
"""Height and width of an undistorted digit, in pixels."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class Distortion:
    """What happens to a digit on its way onto the canvas. Each field is off by default."""

    canvas: int = DIGIT
    """Height and width of the distorted image, in pixels."""
    rotation_degrees: float = 0.0
    """Rotated uniformly within plus or minus this."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Scaled uniformly within this range."""
    translate: bool = False
    """Placed uniformly wherever the whole digit image fits; centred otherwise."""
    corner_noise_px: float = 0.0
    """Standard deviation by which each corner of the digit image moves: a projective distortion."""
    spline_noise_px: float = 0.0
    """Standard deviation by which each of 16 control points moves: an elastic distortion."""
    clutter: int = 0
    """How many 6x6 patches of other digits are strewn in."""

    def __post_init__(self) -> None:
        if self.corner_noise_px and self.spline_noise_px:
            raise ValueError("corner_noise_px, spline_noise_px: a set is projective or elastic, not both")
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale: expected 0 < low <= high, got {self.scale}")
        if self.translate and high * DIGIT > self.canvas:
            raise ValueError(f"canvas: {self.canvas} pixels do not hold a digit of {high * DIGIT:g}")


class Distorter:
    """Distorts batches of digits.

    Args:
        distortion: what to do.
        device: where.
    """

    def __init__(self, distortion: Distortion, device: torch.device) -> None:
        size = (distortion.canvas, distortion.canvas)
        self.distortion = distortion
        self.affine = Affine(size).to(device)
        self.projective = Projective(size).to(device)
        self.spline = ThinPlateSpline(size).to(device)
        self.sampler = Sampler(padding="zeros")

    def __call__(self, digits: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
        """Distorted images `[N, 1, canvas, canvas]` in [0, 1].

        Args:
            digits: `[N, 1, 28, 28]` in [0, 1].
            others: digits `[M, 28, 28]`, uint8, that clutter is cut from.
            generator: the only source of randomness, on the device of `digits`.
        """
        d = self.distortion
        theta = placement(d, len(digits), generator)
        if d.corner_noise_px:
            grid = self.projective.grid(compose(perspective(d, theta, generator), theta))
        elif d.spline_noise_px:
            grid = self.spline.grid(compose(theta, self._elastic(len(digits), generator)))
        else:
            grid = self.affine.grid(theta)
        images = self.sampler(digits, grid, grid_is_finite=True)
        return strew_clutter(images, others, d.clutter, generator) if d.clutter else images

    def _elastic(self, count: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, 16, 2, generator=generator, device=generator.device)
        return self.spline.controls + noise * (self.distortion.spline_noise_px * 2 / self.distortion.canvas)


def placement(distortion: Distortion, count: int, generator: torch.Generator) -> Tensor:
    """Theta `[N, 2, 3]` from the canvas to the digit: place, then scale, then rotate."""
    scale = _uniform(count, *distortion.scale, generator)
    angle = _uniform(count, -1, 1, generator) * (distortion.rotation_degrees * pi / 180)
    centre = torch.zeros(count, 2, device=generator.device)
    if distortion.translate:
        room = 1 - scale * DIGIT / distortion.canvas
        centre = torch.stack([_uniform(count, -1, 1, generator) for _ in range(2)], dim=-1) * room[:, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], dim=-2)
    linear = rotation * (distortion.canvas / (DIGIT * scale))[:, None, None]
    return torch.cat([linear, -linear @ centre[:, :, None]], dim=-1)


def perspective(distortion: Distortion, theta: Tensor, generator: torch.Generator) -> Tensor:
    """The homography `[N, 3, 3]` that takes the moved corners of the digit image back to where they were."""
    count = len(theta)
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=theta.device).expand(count, 4, 2)
    pixels_to_digit = torch.linalg.det(theta[:, :, :2]).abs().sqrt() * 2 / distortion.canvas
    noise = torch.randn(count, 4, 2, generator=generator, device=theta.device)
    return homography(corners + noise * (distortion.corner_noise_px * pixels_to_digit)[:, None, None], corners)


def homography(sources: Tensor, targets: Tensor) -> Tensor:
    """The 3x3 matrices `[N, 3, 3]` with last entry 1 that take four points `[N, 4, 2]` to four others."""
    x, y = sources.double().unbind(-1)
    u, v = targets.double().unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    rows_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=-1)
    rows_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=-1)
    system, right = torch.cat([rows_u, rows_v], dim=1), torch.cat([u, v], dim=1)
    solution: Tensor = torch.linalg.solve(system, right)
    return F.pad(solution, (0, 1), value=1.0).reshape(-1, 3, 3).to(sources.dtype)


def strew_clutter(images: Tensor, others: Tensor, patches: int, generator: torch.Generator, size: int = 6) -> Tensor:
    """Lay random `size` x `size` pieces of other digits onto the images, keeping the brighter value."""
    count, canvas = len(images), images.shape[-1]
    device = images.device

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count * patches,), generator=generator, device=device)

    offsets = torch.arange(size, device=device)
    source_rows, source_columns = (integers(DIGIT - size + 1)[:, None] + offsets for _ in range(2))
    rows, columns = (integers(canvas - size + 1)[:, None] + offsets for _ in range(2))
    pieces = others[integers(len(others))[:, None, None], source_rows[:, :, None], source_columns[:, None]]
    place = torch.arange(count, device=device).repeat_interleave(patches)[:, None, None] * canvas**2
    index = place + rows[:, :, None] * canvas + columns[:, None]
    flat = images.flatten().scatter_reduce(0, index.flatten(), pieces.flatten().to(images.dtype) / 255, "amax")
    return flat.reshape_as(images)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device) * (high - low) + low
