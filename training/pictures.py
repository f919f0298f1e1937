"""Pictures of what transformers look at, and of how training went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from training.models.network import Network, PlacedTransformer
from training.stn import ThinPlateSpline

CELL = 112
"""Height and width of each image on a sheet, in pixels."""
GAP = 6
LABEL_HEIGHT = 16
OUTLINE, TOP_EDGE, TEXT, PAPER = (60, 200, 90), (255, 120, 40), (30, 30, 30), (255, 255, 255)
WRONG = (200, 30, 30)


@torch.no_grad()
def contact_sheet(network: Network, images: Tensor, targets: Tensor, labels: Sequence[str]) -> Image.Image:
    """One column for each image: the input with what each transformer looks at, what it saw, and the answer.

    The outline is that of the transformer's output on the input, its top edge in orange; a thin plate spline shows its
    control points as well. Of a transformer on a feature map it is the part of the image under what it samples.

    Args:
        network: in any mode; it is evaluated.
        images: `[N, C, H, W]` in [0, 1].
        targets: `[N]`, the true classes, or `[N, P]`, those of sequences.
        labels: of the classes.
    """
    network.eval()
    logits, theta = network(images)
    inputs, seen = [_enlarge(image) for image in images], []
    for index, placed in enumerate(network.transformers()):
        thetas = theta[:, index]
        for cell, one in zip(inputs, thetas, strict=True):
            _draw_outline(cell, placed, one)
        seen.append([_enlarge(image) for image in _sample(images, placed, thetas)])
    return _assemble([inputs, *seen], _texts(targets, labels), _texts(logits.argmax(-1), labels))


def stack(sheets: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Titled sheets under each other."""
    width = max(sheet.width for _, sheet in sheets)
    page = Image.new("RGB", (width, sum(sheet.height + LABEL_HEIGHT + GAP for _, sheet in sheets)), PAPER)
    draw, top = ImageDraw.Draw(page), 0
    for title, sheet in sheets:
        draw.text((GAP, top + GAP // 2), title, fill=TEXT)
        page.paste(sheet, (0, top + LABEL_HEIGHT + GAP))
        top += sheet.height + LABEL_HEIGHT + GAP
    return page


def draw_curves(log: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Training loss and test error over the epochs, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    loss_axis = figure.subplots()
    error_axis = loss_axis.twinx()
    loss_axis.semilogy([e["epoch"] for e in log], [e["loss"] for e in log], color="tab:blue", marker=".")
    tested = [e for e in log if "error_percent" in e]
    error_axis.semilogy([e["epoch"] for e in tested], [e["error_percent"] for e in tested], "o-", color="tab:orange")
    loss_axis.set(xlabel="epoch", ylabel="training loss (blue)", title=title)
    error_axis.set(ylabel="test error, % (orange)")
    figure.savefig(path, dpi=120)


def _sample(images: Tensor, placed: PlacedTransformer, theta: Tensor) -> Tensor:
    sampled: Tensor = placed.module.sampler(images, placed.module.transform.grid(theta))
    return sampled


def _texts(classes: Tensor, labels: Sequence[str]) -> list[str]:
    """The label of each image, or its labels position by position."""
    return ["".join(labels[index] for index in row) for row in classes.reshape(len(classes), -1).tolist()]


def _draw_outline(cell: Image.Image, placed: PlacedTransformer, theta: Tensor) -> None:
    transform = placed.module.transform
    grid = transform.grid(theta.unsqueeze(0))[0]
    draw = ImageDraw.Draw(cell)
    sides = [grid[0], grid[:, -1], grid[-1].flip(0), grid[:, 0].flip(0)]
    draw.line(_pixels(torch.cat([*sides, grid[0, :1]])), fill=OUTLINE, width=2)
    draw.line(_pixels(sides[0]), fill=TOP_EDGE, width=2)
    if isinstance(transform, ThinPlateSpline):
        for x, y in _pixels(theta):
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=OUTLINE)


def _pixels(points: Tensor) -> list[tuple[float, float]]:
    pixels: list[tuple[float, float]] = [(x, y) for x, y in ((points + 1) * (CELL / 2)).tolist()]
    return pixels


def _enlarge(image: Tensor) -> Image.Image:
    pixels: NDArray[np.uint8] = (image.float().clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BILINEAR)


def _assemble(rows: list[list[Image.Image]], targets: list[str], answers: list[str]) -> Image.Image:
    step = CELL + GAP
    page = Image.new("RGB", (len(targets) * step + GAP, len(rows) * step + GAP + LABEL_HEIGHT), PAPER)
    draw = ImageDraw.Draw(page)
    for index, (target, answer) in enumerate(zip(targets, answers, strict=True)):
        left = GAP + index * step
        for row, cells in enumerate(rows):
            page.paste(cells[index], (left, GAP + row * step))
        text = answer if answer == target else f"{answer} (is {target})"
        draw.text((left, GAP + len(rows) * step - 2), text, fill=TEXT if answer == target else WRONG)
    return page
