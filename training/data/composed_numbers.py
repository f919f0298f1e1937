"""House numbers composed from fonts and handwriting, like photographs of them, for machines without SVHN.

Nothing here is a photograph, and no number measured on these images is one on SVHN. A batch is made at once, on the
device: a strip of glyphs for each image, warped in perspective onto a wall, lit, photographed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.distortions import homography
from training.data.draws import Draws
from training.data.glyphs import DIGITS, FONTS, HEIGHT, LETTERS, MARGIN, ROWS, WIDENINGS, WIDTH, Glyphs, collect
from training.data.glyphs import handwritten as cut_handwritten
from training.data.glyphs import printed as render
from training.data.mnist import Images
from training.data.scenery import colors, lights, photographed, walls
from training.stn.matrix import Affine
from training.stn.projective import Projective
from training.stn.sampler import Sampler

LABELS = (*"0123456789", "")
"""The digits, and nothing: the class of every position after the last digit."""
POSITIONS = 5
NULL = 10
"""The class of a position after the last digit."""
LENGTHS = (0.1, 0.25, 0.3, 0.2, 0.15)
"""How often a number has one to five digits."""
WORD = 8
"""Letters of a distracting word."""
STRIP = 256
"""Columns of a strip of glyphs."""
CACHED_PIXELS = 32 * 64 * 64
"""How much a CPU composes at once: more would leave its cache, and take up to twice as long."""

TIGHT = 1.3
"""By how much a tight crop is larger than the box around its number."""

Crop = Literal["tight", "loose"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where numbers stand: the axis-parallel boxes around them, normalised to [-1, 1]."""

    center: Tensor
    """`[N, 2]`, x before y."""
    half: Tensor
    """`[N, 2]`, half width and half height."""

    def chosen(self, some: Tensor) -> Placement:
        """Of some images."""
        return Placement(self.center[some], self.half[some])


class NumberComposer:
    """Composes images of house numbers.

    Args:
        size: height and width of an image.
        crop: `tight` as the paper's 64 pixel crops: the box around the number, enlarged by 30 %, fills the image.
            `loose` as its 128 pixel ones: the box takes a third to a half of the image a side, anywhere in it, and
            words and smaller numbers stand beside it. Either way the crop is stretched to a square, and the number in
            it.
        digits: MNIST's, `[M, 28, 28]`, for handwritten numbers.
        labels: theirs, `[M]`.
        device: where to compose.
    """

    def __init__(self, size: int, crop: Crop, digits: Images, labels: Images, device: torch.device) -> None:
        self.size = size
        self.crop = crop
        by_class = np.argsort(labels, kind="stable")
        inks = [*render(DIGITS), *render(LETTERS), *cut_handwritten(digits[by_class])]
        self.glyphs = collect(inks).to(device)
        self.styles = len(FONTS) * len(WIDENINGS)
        self.first_letter = 1 + self.styles * len(DIGITS)
        self.first_handwritten = self.first_letter + self.styles * len(LETTERS)
        self.handwritten_counts = torch.from_numpy(np.bincount(labels, minlength=10)).to(device)
        self.perspective = Projective((size, 2 * size)).to(device)
        self.affine = Affine((size, size)).to(device)
        self.sampler = Sampler(padding="zeros")

    def __call__(self, count: int, generator: torch.Generator, looseness: float = 1.0) -> tuple[Tensor, Tensor]:
        """Images `[N, 3, size, size]` in [0, 1] and their classes `[N, 5]`: 0 to 9, then `NULL`.

        Args:
            count: N.
            generator: the only source of randomness, on the composer's device.
            looseness: of loose crops, from 0, where the number almost fills the image, to 1.
        """
        on_cpu = generator.device.type == "cpu"
        at_once = max(1, CACHED_PIXELS // self.size**2) if on_cpu else count
        counts = [min(at_once, count - start) for start in range(0, count, at_once)]
        parts = [self._compose(part, Draws(generator), looseness) for part in counts]
        images, targets = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(targets)

    def _compose(self, count: int, draws: Draws, looseness: float) -> tuple[Tensor, Tensor]:
        targets = draw_numbers(count, draws)
        placement = self._place(count, draws, looseness)
        behind, contrast = draws.uniform(0, 1, count), draws.uniform(0.28, 0.8, count)
        up = (behind + contrast <= 1) & ((behind - contrast < 0) | (draws.chance(0.5, count) > 0))
        front = torch.where(up, behind + contrast, (behind - contrast).clamp(min=0))

        plated = draws.chance(0.35, count)
        wall = torch.where(plated > 0, draws.uniform(0, 1, count), behind)
        image = walls(colors(wall, draws), self.size, draws)
        image = self._beside(image, placement, wall, draws)
        ink, plate = self._warp(targets, placement, draws)
        plate_opacity = plated * draws.uniform(0.85, 1, count)
        image = torch.lerp(image, colors(behind, draws), plate * plate_opacity[:, None, None, None])
        image = self._raise(image, ink, draws)
        opacity = draws.uniform(0.85, 1, count, 1, 1, 1)
        image = torch.lerp(image, colors(front, draws), ink * opacity)
        return photographed(lights(image, draws), draws), targets

    def _place(self, count: int, draws: Draws, looseness: float) -> Placement:
        if self.crop == "tight":
            half = draws.uniform(1.25, 1.35, count, 2).reciprocal()
            return Placement(draws.normal(0.02, count, 2), half)
        enlarged = draws.uniform(2.0, 3.2, count, 1) * draws.uniform(0.9, 1.1, count, 2)
        enlarged = TIGHT + (enlarged - TIGHT) * looseness
        half = enlarged.reciprocal()
        return Placement(draws.uniform(-1, 1, count, 2) * (0.95 - half), half)

    def _warp(self, targets: Tensor, placement: Placement, draws: Draws) -> tuple[Tensor, Tensor]:
        """Ink of the numbers and of plates behind them, each `[N, 1, size, size]`."""
        count = len(targets)
        present = targets != NULL
        gaps = draws.uniform(-1, 9, count, 1) + draws.uniform(-1, 2, count, POSITIONS)
        lifts = draws.normal(1, count, POSITIONS) * draws.chance(0.4, count, 1)
        cells = torch.where(present, self._digit_cells(targets.clamp(max=9), draws), 0)
        strip, lengths = lay_strip(self.glyphs, cells, gaps.round().long() * present, lifts.round().long())
        theta = perspective(lengths, placement, draws)
        grid = self.perspective.grid(theta)
        bend = draws.normal(0.08, count, 1, 1) * draws.chance(0.3, count, 1, 1)
        grid[..., 1] += bend * torch.sin(grid[..., 0] * 5 + draws.uniform(0, 2 * pi, count, 1, 1))
        ink = self.sampler(strip, grid, grid_is_finite=True)
        ink = (ink[..., ::2] + ink[..., 1::2]) / 2
        return ink, self._plates(grid[:, :, ::2], lengths, draws)

    def _digit_cells(self, digits: Tensor, draws: Draws) -> Tensor:
        """Cells `[N, K]` of digits: of one font for each number, or each from another stroke of handwriting."""
        count, positions = digits.shape
        style = draws.integers(0, self.styles, count, 1)
        in_print = 1 + style * len(DIGITS) + digits
        counts = self.handwritten_counts
        pick = (draws.uniform(0, 1, count, positions) * counts[digits]).long().clamp(max=counts[digits] - 1)
        by_hand = self.first_handwritten + (counts.cumsum(0) - counts)[digits] + pick
        return torch.where(draws.chance(0.2, count, 1) > 0, by_hand, in_print)

    def _plates(self, grid: Tensor, lengths: Tensor, draws: Draws) -> Tensor:
        """Soft-edged rectangles around the numbers, in strip coordinates."""
        pad_x, pad_y = (draws.uniform(0.1, 0.6, len(lengths), 1, 1) for _ in range(2))
        half_x = lengths[:, None, None] / STRIP
        beyond_x = (grid[..., 0] + 1 - half_x).abs() / (half_x + pad_x * HEIGHT / STRIP)
        beyond_y = grid[..., 1].abs() / (HEIGHT / ROWS * (1 + pad_y))
        return torch.sigmoid((1 - torch.maximum(beyond_x, beyond_y)) * 40)[:, None]

    def _raise(self, image: Tensor, ink: Tensor, draws: Draws) -> Tensor:
        """Outlines on some numbers, shadows cast by others."""
        count = len(image)
        some = draws.chance(0.15, count).nonzero().flatten()
        outline = 0.8 * F.max_pool2d(ink[some], 3, 1, 1)
        image[some] = torch.lerp(image[some], colors(draws.uniform(0, 1, len(some)), draws), outline)
        shift = draws.sign(count, 2) * draws.uniform(0.5, 2.5, count, 2) * (2 / self.size)
        theta = torch.cat([torch.eye(2, device=shift.device).expand(count, 2, 2), shift[:, :, None]], dim=-1)
        shadow: Tensor = self.sampler(ink, self.affine.grid(theta), grid_is_finite=True)
        return image * (1 - shadow * draws.uniform(0.2, 0.6, count, 1, 1, 1) * draws.chance(0.4, count, 1, 1, 1))

    def _beside(self, image: Tensor, placement: Placement, wall: Tensor, draws: Draws) -> Tensor:
        """Words and other numbers beside the number: never as large as it, or cut off by the edge of a tight crop."""
        sizes = (0.5, 1.0) if self.crop == "tight" else (0.25, 0.5)
        for is_word, probability in ((True, 0.5), (False, 0.35)):
            some = draws.chance(probability, len(image)).nonzero().flatten()
            cells = self._word_cells(len(some), draws) if is_word else self._number_cells(len(some), draws)
            strip, lengths = lay_strip(self.glyphs, cells, 4 * (cells > 0), torch.zeros_like(cells))
            theta = self._aside(lengths, placement.chosen(some), sizes, draws)
            ink = self.sampler(strip, self.affine.grid(theta), grid_is_finite=True)
            shade = wall[some] + draws.sign(len(some)) * draws.uniform(0.2, 0.7, len(some))
            image[some] = torch.lerp(image[some], colors(shade.clamp(0, 1), draws), ink)
        return image

    def _word_cells(self, count: int, draws: Draws) -> Tensor:
        letters = draws.integers(0, len(LETTERS), count, WORD)
        style = draws.integers(0, self.styles, count, 1)
        return cut_short(self.first_letter + style * len(LETTERS) + letters, draws)

    def _number_cells(self, count: int, draws: Draws) -> Tensor:
        return cut_short(self._digit_cells(draws.integers(0, 10, count, POSITIONS - 1), draws), draws)

    def _aside(self, lengths: Tensor, placement: Placement, sizes: tuple[float, float], draws: Draws) -> Tensor:
        """Theta `[N, 2, 3]` from the image to a strip that stands left, right, above or below of the number."""
        count = len(lengths)
        half_y = placement.half[:, 1] * draws.uniform(*sizes, count)
        half_x = (half_y * lengths / HEIGHT * draws.uniform(0.5, 1, count)).clamp(max=0.8)
        half = torch.stack([half_x, half_y], dim=-1)
        beside = draws.chance(0.5, count, 1)
        axis = torch.cat([beside, 1 - beside], dim=-1)
        away = placement.half + half + draws.uniform(0.08, 0.25, count, 1)
        along = (1 - axis) * draws.uniform(-1, 1, count, 2) * placement.half
        center = placement.center + draws.sign(count, 1) * axis * away + along
        scale = torch.stack([lengths / STRIP / half_x, HEIGHT / ROWS / half_y], dim=-1)
        offset = torch.stack([lengths / STRIP - 1, torch.zeros_like(half_x)], dim=-1)
        return torch.cat([torch.diag_embed(scale), (offset - scale * center)[:, :, None]], dim=-1)


def draw_numbers(count: int, draws: Draws) -> Tensor:
    """Classes `[N, 5]` of random numbers, of which only those of one digit may begin with 0."""
    lengths = 1 + (draws.uniform(0, 1, count, 1) > torch.tensor(LENGTHS, device=draws.generator.device).cumsum(0)).sum(
        -1
    )
    digits = draws.integers(0, 10, count, POSITIONS)
    leading = draws.integers(1, 10, count)
    digits[:, 0] = torch.where(lengths > 1, leading, digits[:, 0])
    return torch.where(torch.arange(POSITIONS, device=digits.device) < lengths[:, None], digits, NULL)


def cut_short(cells: Tensor, draws: Draws) -> Tensor:
    """Cells `[N, K]`, blank after a random number of them."""
    count, positions = cells.shape
    return torch.where(
        torch.arange(positions, device=cells.device) < draws.integers(1, positions + 1, count, 1), cells, 0
    )


def lay_strip(glyphs: Glyphs, cells: Tensor, gaps: Tensor, lifts: Tensor) -> tuple[Tensor, Tensor]:
    """Glyphs side by side.

    Args:
        glyphs: the cells.
        cells: which, `[N, K]`; 0 stands after the last.
        gaps: blank columns after each, `[N, K]`.
        lifts: rows by which each stands lower, `[N, K]`, at most `MARGIN`.

    Returns:
        Ink `[N, 1, ROWS, STRIP]` from 0 to 1, and the columns from the first to the last of it, `[N]`.
    """
    widths = torch.where(cells > 0, glyphs.widths[cells], 0)
    ends = (widths + gaps).cumsum(-1)
    starts = ends - widths - gaps
    columns = torch.arange(STRIP, device=cells.device)
    which = (columns[:, None] >= starts[:, None]).sum(-1).clamp(min=1) - 1
    local = columns - starts.gather(1, which)
    inside = (local >= 0) & (local < widths.gather(1, which))
    cell = torch.where(inside, cells.gather(1, which), 0)
    lifted = lifts.clamp(-MARGIN, MARGIN).gather(1, which)
    rows = (torch.arange(ROWS, device=cells.device) - lifted[..., None]).clamp(0, ROWS - 1)
    index = (cell * WIDTH + local.clamp(0, WIDTH - 1))[..., None] * ROWS + rows
    ink = glyphs.cells.flatten()[index].float() / 255
    return ink.mT.unsqueeze(1), (starts + widths).amax(-1).clamp(max=STRIP).float()


def perspective(lengths: Tensor, placement: Placement, draws: Draws) -> Tensor:
    """Homographies `[N, 3, 3]` from the image to strips: rotated, sheared and seen from aside, filling their boxes."""
    count = len(lengths)
    aspect = lengths / HEIGHT
    corners = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], device=lengths.device)
    quad = corners * torch.stack([aspect, torch.ones_like(aspect)], dim=-1)[:, None]
    angle = draws.normal(5 * pi / 180, count).clamp(-0.25, 0.25)
    shear = draws.normal(0.08, count)
    cos, sin = torch.cos(angle), torch.sin(angle)
    linear = torch.stack([torch.stack([cos, shear * cos - sin], -1), torch.stack([sin, shear * sin + cos], -1)], dim=-2)
    quad = quad @ linear.mT + draws.normal(0.07, count, 4, 2)
    low, high = quad.amin(1, keepdim=True), quad.amax(1, keepdim=True)
    filled = (quad - low) / (high - low) * 2 - 1
    filled = filled * placement.half[:, None] + placement.center[:, None]
    right = lengths / STRIP * 2 - 1
    left = torch.full_like(right, -1.0)
    top = torch.full_like(right, MARGIN / ROWS * 2 - 1)
    strip = [torch.stack(point, -1) for point in ((left, top), (right, top), (right, -top), (left, -top))]
    return homography(filled, torch.stack(strip, dim=1))
