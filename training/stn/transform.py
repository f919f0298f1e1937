"""What every transform shares: raw parameters in, theta and its sampling grid out."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import ClassVar

import torch
from torch import Tensor, nn

PARAMETER_BOUND = 1e3
"""Raw parameters are clamped here. Far beyond, runtimes disagree on coordinates, and no image is that large."""

LARGEST_SCALE = 4.0
"""Bounded parametrisations keep scales within [1/4, 4]."""


class Transform(nn.Module):
    """A family of warps: turns localisation output into theta, and theta into a sampling grid.

    Convention:
        theta maps output (target) to input (source) coordinates: the inverse warp of Jaderberg et al. 2015, eq. 1. Both
        sides are normalised to [-1, 1] over the edges of the map (`align_corners=False`: output element i of n sits at
        (2 i + 1) / n - 1), x before y before z. A grid has the layout of `torch.nn.functional.grid_sample`.

    Numbers:
        theta and the grid are kept in float32 at least, also under autocast: rounding the identity grid of a 448 pixel
        image to float16 costs 0.09 in pixel value, to bfloat16 0.57. A raw parameter that is not a number falls back to
        the identity's, and all are clamped to `PARAMETER_BOUND`, so that no grid is ever non-finite or out of any
        runtime's reach. Guarding this handful of numbers costs a thousandth of guarding the grid, and does as much.

    Args:
        output_size: height and width (depth, height and width in three dimensions) of the map that is produced.
        bounded: parametrise through tanh and exp, so that no raw parameter can leave the neighbourhood of the image.

    Raises:
        ValueError: an output size that is not positive, or of the wrong rank.
    """

    kind: ClassVar[str]
    dimensions: ClassVar[int] = 2
    parameter_names: tuple[str, ...]
    identity_parameters: Tensor

    def __init__(self, output_size: Sequence[int], *, bounded: bool = False) -> None:
        super().__init__()
        self.output_size = _checked_size(output_size, self.dimensions)
        self.bounded = bounded

    @property
    def parameter_count(self) -> int:
        """How many numbers the localisation head predicts."""
        return len(self.parameter_names)

    def identity(self) -> list[float]:
        """Raw parameters of the identity (for a translation: of its crop, centred)."""
        return self.start((0.0,) * self.dimensions)

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look at the square of half width `scale` around `center` (x, y), normalised."""
        raise NotImplementedError

    def theta(self, parameters: Tensor) -> Tensor:
        """Theta `[N, ...]` of finite raw parameters `[N, parameter_count]`."""
        raise NotImplementedError

    def grid(self, theta: Tensor) -> Tensor:
        """The sampling grid `[N, *output_size, dimensions]` of a finite theta."""
        raise NotImplementedError

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Theta and its grid, both finite, from any raw parameters `[N, parameter_count]`.

        Raises:
            ValueError: parameters of another shape.
        """
        if parameters.dim() != 2 or parameters.shape[1] != self.parameter_count:
            expected = f"[N, {self.parameter_count}] ({', '.join(self.parameter_names[:12])})"
            raise ValueError(f"parameters: {self.kind} expects {expected}, got {list(parameters.shape)}")
        with torch.autocast(parameters.device.type, enabled=False):
            precise = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
            theta = self.theta(self._guard(precise))
            return theta, self.grid(theta)

    def _keep_identity(self) -> None:
        self.register_buffer("identity_parameters", torch.tensor(self.identity()), persistent=False)

    def _guard(self, parameters: Tensor) -> Tensor:
        identity = self.identity_parameters.to(parameters.dtype)
        return torch.where(torch.isnan(parameters), identity, parameters).clamp(-PARAMETER_BOUND, PARAMETER_BOUND)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"output_size={self.output_size}, bounded={self.bounded}"


def target_axis(size: int) -> Tensor:
    """Normalised centres of `size` output elements along one axis, float64: (2 i + 1) / size - 1."""
    return (torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1


def target_points(output_size: Sequence[int]) -> Tensor:
    """Target coordinates `[H * W, D]`, x before y, float64, one row for each output element."""
    axes = torch.meshgrid(*map(target_axis, output_size), indexing="ij")
    return torch.stack(axes[::-1], dim=-1).flatten(0, -2)


def bounded_scale(raw: Tensor) -> Tensor:
    """A scale within [1 / LARGEST_SCALE, LARGEST_SCALE], 1 at 0: exp of a bounded exponent."""
    return torch.exp(log(LARGEST_SCALE) * torch.tanh(raw))


def _checked_size(output_size: Sequence[int], dimensions: int) -> tuple[int, ...]:
    size = tuple(output_size)
    if len(size) != dimensions or not all(isinstance(n, int) and n > 0 for n in size):
        names = "(height, width)" if dimensions == 2 else "(depth, height, width)"
        raise ValueError(f"output_size: expected {names}, positive integers, got {size}")
    return size
