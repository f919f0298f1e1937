"""Pictures for people: where the transformers looked, what they saw, and the answer."""

from __future__ import annotations

from itertools import cycle
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stn_serve.poses import Array
    from stn_serve.prediction import Prediction

COLORS = ("#ff9f1c", "#2ec4f1", "#7bd836", "#ff5d8f", "#f7e733", "#b388ff")
"""One for each transformer, in turn; told apart by people who see red and green alike, too."""

PAPER = "#f4f4f1"
INK = "#1c1c1c"
SMALLEST_SIDE, LARGEST_SIDE = 320, 1024
"""The image is drawn with its longer side between these, in pixels."""

SUPERSAMPLING = 3
"""Lines are drawn this much larger and shrunk, for smooth edges."""


def draw(image: Image.Image, prediction: Prediction) -> Image.Image:
    """The image with each transformer's outline, its crop in the same colour beside it, and the answer below.

    The thick edge of an outline is the crop's top.
    """
    seen = [transform for transform in prediction.transforms if transform.outline.size]
    overlay = draw_outlines(image, [transform.outline for transform in seen])
    side = overlay.height // max(1, ceil(sqrt(len(seen))))
    crops = [
        _framed(prediction.rectify(image, transform.name), color, side)
        for transform, color in zip(seen, cycle(COLORS), strict=False)
    ]
    picture = _side_by_side(overlay, crops)
    return captioned(picture, f"{prediction.label}   {prediction.probability:.1%}")


def draw_outlines(image: Image.Image, outlines: Sequence[Array]) -> Image.Image:
    """The image at a legible size with outlines `[N, 2]`, in its pixels; with room around it where they leave it."""
    scale = _scale(image)
    size = (round(image.width * scale), round(image.height * scale))
    enlarged = image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    scaled = [np.clip(outline * scale, -10 * LARGEST_SIDE, 10 * LARGEST_SIDE) for outline in outlines]
    left, top, right, bottom = _margins(size, scaled)
    canvas = Image.new("RGB", (size[0] + left + right, size[1] + top + bottom), PAPER)
    canvas.paste(enlarged, (left, top))
    for outline, color in zip(scaled, cycle(COLORS), strict=False):
        _draw_outline(canvas, outline + np.array([left, top]), color)
    return canvas


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """The picture with a line of text below it."""
    size = max(14, picture.width // 18)
    font = ImageFont.load_default(size)
    font = ImageFont.load_default(min(size, size * picture.width * 0.94 / max(font.getlength(text), 1)))
    canvas = Image.new("RGB", (picture.width, picture.height + round(1.8 * size)), PAPER)
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((canvas.width / 2, picture.height + 0.9 * size), text, INK, font, anchor="mm")
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures in rows, about as many as columns unless told otherwise; large ones shrink to the smallest."""
    columns = columns or ceil(sqrt(len(pictures)))
    side = max(SMALLEST_SIDE, min(max(picture.size) for picture in pictures))
    pictures = [
        ImageOps.contain(picture, (side, side)) if max(picture.size) > side else picture for picture in pictures
    ]
    gap = 12
    width = max(picture.width for picture in pictures) + gap
    height = max(picture.height for picture in pictures) + gap
    rows = ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * width, gap + row * height))
    return sheet


def _scale(image: Image.Image) -> float:
    longer = max(image.size)
    if longer < SMALLEST_SIDE:
        return ceil(SMALLEST_SIDE / longer)  # whole, so that every pixel becomes a square
    return min(1.0, LARGEST_SIDE / longer)


def _margins(size: tuple[int, int], outlines: Sequence[Array]) -> tuple[int, int, int, int]:
    """Room for outlines that leave the image: left, top, right, bottom, each at most half the image."""
    points = np.concatenate([*outlines, [(0, 0), size]])
    limit = np.array(size) / 2
    before = np.clip(-points.min(axis=0), 0, limit)
    after = np.clip(points.max(axis=0) - size, 0, limit)
    line = 6 if len(outlines) else 0
    left, top, right, bottom = (ceil(side) + line for side in (*before, *after))
    return left, top, right, bottom


def _draw_outline(canvas: Image.Image, outline: Array, color: str) -> None:
    layer = Image.new("RGBA", (canvas.width * SUPERSAMPLING, canvas.height * SUPERSAMPLING))
    pen = ImageDraw.Draw(layer)
    corners = [tuple(point) for point in (outline * SUPERSAMPLING).tolist()]
    top_edge = corners[: len(corners) // 4 + 1]
    width = max(3, max(canvas.size) // 140) * SUPERSAMPLING
    for extra, ink in ((SUPERSAMPLING * 2, "#000000a0"), (0, color)):  # a dark rim shows the line on any picture
        pen.line([*corners, *corners[:2]], ink, width + extra, joint="curve")
        pen.line(top_edge, ink, 2 * width + extra, joint="curve")
    layer = layer.reduce(SUPERSAMPLING)
    canvas.paste(layer, mask=layer)


def _framed(crop: Image.Image, color: str, side: int) -> Image.Image:
    """The crop in a coloured frame, both together within `side` x `side`."""
    frame = max(2, side // 60)
    scale = (side - 2 * frame) / max(crop.size)
    size = (max(1, round(crop.width * scale)), max(1, round(crop.height * scale)))
    framed = Image.new("RGB", (size[0] + 2 * frame, size[1] + 2 * frame), color)
    framed.paste(crop.resize(size, Image.Resampling.BILINEAR), (frame, frame))
    return framed


def _side_by_side(overlay: Image.Image, crops: Sequence[Image.Image]) -> Image.Image:
    if not crops:
        return overlay
    beside = contact_sheet(crops)
    canvas = Image.new("RGB", (overlay.width + beside.width, max(overlay.height, beside.height)), PAPER)
    canvas.paste(overlay, (0, (canvas.height - overlay.height) // 2))
    canvas.paste(beside, (overlay.width, (canvas.height - beside.height) // 2))
    return canvas
