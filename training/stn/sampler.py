"""The sampler: reads the input map at the points of a grid (paper section 3.3)."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.stn.pixel_sampling import is_worth_it, sample_by_pixel
from training.stn.transform import PARAMETER_BOUND

Mode = Literal["bilinear", "nearest", "bicubic"]
Padding = Literal["border", "zeros", "reflection", "fill"]


class Sampler(nn.Module):
    """Samples `[N, C, H, W]` (or `[N, C, D, H, W]`) at a grid `[N, h, w, 2]` (or `[N, d, h, w, 3]`).

    Convention:
        Grid coordinates are source coordinates, normalised to [-1, 1] over the edges of the input
        (`align_corners=False`), x before y before z. Gradients reach both the input and the grid (paper eqs. 6 and 7;
        at integer positions, where the bilinear kernel has a kink, the grid's gradient is the right difference).

    Args:
        mode: `bilinear` (eq. 5), `nearest` (eq. 4, the integer kernel: halves round up; no gradient to the grid) or
            `bicubic` (four samples an axis, a = -0.75; not for volumes).
        padding: what lies outside: `border` repeats the edge and gives no gradient that pulls outwards or in, `zeros`,
            `reflection` about the edge, or `fill` with the value `fill`.
        fill: value outside the image for `padding="fill"`, in the input's units.
        supersample: k averages k x k samples for each output element, against aliasing where the warp shrinks the
            image (paper section 3.4). The grid has k times the output's size.

    Raises:
        ValueError: an unknown mode or padding, a fill without `padding="fill"`, or a supersample below 1.
    """

    def __init__(
        self, mode: Mode = "bilinear", padding: Padding = "border", *, fill: float = 0.0, supersample: int = 1
    ) -> None:
        super().__init__()
        _check_choice("mode", mode, get_args(Mode))
        _check_choice("padding", padding, get_args(Padding))
        if not isfinite(fill) or (fill and padding != "fill"):
            raise ValueError(f"fill: expected a finite number, and padding='fill', got {fill} with padding={padding!r}")
        if supersample < 1:
            raise ValueError(f"supersample: expected 1 or more, got {supersample}")
        self.mode: Mode = mode
        self.padding: Padding = padding
        self.fill = fill
        self.supersample = supersample

    def forward(self, images: Tensor, grid: Tensor, *, grid_is_finite: bool = False) -> Tensor:
        """The sampled map `[N, C, h, w]`, in the dtype of `images`.

        Args:
            images: the input map.
            grid: where to sample it. Kept in float32 at least.
            grid_is_finite: the caller vouches for a finite, bounded grid (every `Transform` gives one). Otherwise
                non-finite points read the centre: torch's backward pass would crash on them.
        """
        _check_ranks(images, grid, self.mode)
        if not grid_is_finite:
            grid = finite_grid(grid)
        if self.mode == "nearest":
            grid = _round_half_up(grid, images.shape[2:])
        precise = images.to(torch.promote_types(images.dtype, torch.float32))
        sampled = self._sample(precise, grid.to(precise.dtype))
        return _average(sampled, self.supersample).to(images.dtype)

    def _sample(self, images: Tensor, grid: Tensor) -> Tensor:
        if (self.mode, self.padding) == ("bilinear", "border") and is_worth_it(images):
            return sample_by_pixel(images, grid)
        planes = _planes(images)
        if self.padding == "fill":
            zeros_outside = F.grid_sample(planes - self.fill, grid, self.mode, "zeros", align_corners=False)
            return zeros_outside + self.fill
        return F.grid_sample(planes, grid, self.mode, self.padding, align_corners=False)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"mode={self.mode!r}, padding={self.padding!r}, fill={self.fill}, supersample={self.supersample}"


def finite_grid(grid: Tensor) -> Tensor:
    """The grid with non-finite coordinates moved to the centre, and far ones clamped."""
    return torch.where(torch.isfinite(grid), grid, 0.0).clamp(-PARAMETER_BOUND, PARAMETER_BOUND)


def _planes(images: Tensor) -> Tensor:
    """Channel after channel, as torch samples; the gradient comes back in the layout of the images.

    torch returns it in planes: under images that are `channels_last` every layer before would then work across two
    layouts, max-pooling several times as slowly.
    """
    planes = images.contiguous()
    layout = torch.channels_last if images.dim() == 4 else torch.channels_last_3d
    is_other = planes is not images and images.is_contiguous(memory_format=layout)
    if is_other and planes.requires_grad and not torch.compiler.is_compiling():
        planes.register_hook(partial(Tensor.contiguous, memory_format=layout))
    return planes


def _round_half_up(grid: Tensor, input_size: torch.Size) -> Tensor:
    """Coordinates of the element that eq. 4 reads: floor(pixel + 0.5). torch would round halves to even."""
    size = torch.tensor(list(reversed(input_size)), dtype=grid.dtype, device=grid.device)
    index = torch.floor((grid + 1) * size / 2)  # pixel = (grid + 1) * size / 2 - 0.5
    return (index * 2 + 1) / size - 1


def _average(sampled: Tensor, supersample: int) -> Tensor:
    if supersample == 1:
        return sampled
    pool = F.avg_pool2d if sampled.dim() == 4 else F.avg_pool3d
    return pool(sampled, supersample)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_ranks(images: Tensor, grid: Tensor, mode: Mode) -> None:
    dimensions = images.dim() - 2
    if dimensions not in (2, 3) or grid.dim() != images.dim() or grid.shape[-1] != dimensions:
        raise ValueError(
            "images, grid: expected [N, C, H, W] with [N, h, w, 2], or [N, C, D, H, W] with [N, d, h, w, 3], "
            f"got {list(images.shape)} with {list(grid.shape)}"
        )
    if dimensions == 3 and mode == "bicubic":
        raise ValueError("mode: bicubic samples images only, not volumes; use bilinear or nearest")
