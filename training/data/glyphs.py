"""Digits and letters to compose images from: rendered from the fonts that come with matplotlib, and handwritten ones.

Every glyph is cut to its ink and scaled to one height, so that strips of them can be put together column by column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.data.mnist import Images

HEIGHT = 32
"""Of a glyph's ink, in pixels."""
MARGIN = 4
"""Blank rows above and below the ink, for glyphs that stand higher or lower than their neighbours."""
WIDTH = 40
"""Columns of a cell: no glyph is wider."""
ROWS = HEIGHT + 2 * MARGIN

DIGITS = "0123456789"
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZabcdefghkmnrstuvwz"
"""Without those that a digit may be taken for."""
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif"),
    *("DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneral", "STIXGeneralBol"),
    *("STIXGeneralItalic", "STIXGeneralBolIta", "cmb10", "cmr10", "cmss10", "cmtt10", "cmti10"),
)
"""Files among matplotlib's own fonts."""
WIDENINGS = (0.72, 1.0, 1.25)
"""Every font is also used narrowed and widened."""
_RENDERED_PX = 96


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Cells of ink on a device. Cell 0 is blank."""

    cells: Tensor
    """Ink from 0 to 255, uint8 `[G, WIDTH, ROWS]`: column by column."""
    widths: Tensor
    """Columns of ink in each cell, `[G]`."""

    def to(self, device: torch.device) -> Glyphs:
        """The same on another device."""
        return Glyphs(self.cells.to(device), self.widths.to(device))


def collect(inks: Sequence[NDArray[np.uint8]]) -> Glyphs:
    """Cells of inks `[h, w]`, after the blank one."""
    cells = np.zeros((len(inks) + 1, WIDTH, ROWS), np.uint8)
    widths = np.ones(len(inks) + 1, np.int64)
    for index, ink in enumerate(inks, start=1):
        widths[index] = ink.shape[1]
        cells[index, : ink.shape[1], MARGIN : MARGIN + HEIGHT] = ink.T
    return Glyphs(torch.from_numpy(cells), torch.from_numpy(widths))


@cache
def printed(characters: str) -> tuple[NDArray[np.uint8], ...]:
    """The characters in every font and widening: characters fastest, then widenings, then fonts."""
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    inks = []
    for name in FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", _RENDERED_PX)
        pictures = [_render(character, font) for character in characters]
        inks += [_fit(picture, widening) for widening in WIDENINGS for picture in pictures]
    return tuple(inks)


def handwritten(digits: Images) -> list[NDArray[np.uint8]]:
    """MNIST's digits `[N, 28, 28]`."""
    return [_fit(Image.fromarray(digit), 1.0) for digit in digits]


def _render(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    margin = _RENDERED_PX // 2
    picture = Image.new("L", (2 * _RENDERED_PX, 2 * _RENDERED_PX))
    ImageDraw.Draw(picture).text((margin, margin), character, fill=255, font=font)
    return picture


def _fit(picture: Image.Image, widening: float) -> NDArray[np.uint8]:
    box = picture.getbbox()
    assert box is not None  # noqa: S101 - every character and digit has ink
    ink = picture.crop(box)
    width = round(HEIGHT * widening * ink.width / ink.height)
    return np.asarray(ink.resize((min(WIDTH, max(3, width)), HEIGHT), Image.Resampling.BOX))
