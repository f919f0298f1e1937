from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor

from stn_serve.drawing import COLORS, captioned, contact_sheet, draw_outlines
from stn_serve.poses import Array, Box, control_points, source_outline

SQUARE = np.array([(10.0, 10), (30, 10), (30, 30), (10, 30)])


def painted(picture: Image.Image, color: str) -> NDArray[np.bool_]:
    """Where a picture has a colour, nearly."""
    difference = np.asarray(picture).astype(int) - ImageColor.getrgb(color)
    return np.asarray(np.abs(difference).max(axis=-1) < 20)


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((40, 40), (320, 320)),
        ((1, 1), (320, 320)),
        ((319, 100), (638, 200)),
        ((500, 400), (500, 400)),
        ((4000, 3000), (1024, 768)),
    ],
)
def test_images_are_drawn_at_a_legible_size(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert draw_outlines(Image.new("RGB", size), []).size == drawn


def test_small_images_keep_their_pixels_square() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    drawn = np.asarray(draw_outlines(Image.fromarray(pixels), []))
    np.testing.assert_array_equal(drawn[4::8, 4::8, 0], pixels)


def test_the_outline_lies_where_the_transformer_looked() -> None:
    drawn = painted(draw_outlines(Image.new("L", (40, 40)), [SQUARE]), COLORS[0])
    rows, columns = np.nonzero(drawn)
    margin = (drawn.shape[0] - 320) / 2
    assert (columns.min() - margin) / 8 == pytest.approx(10, abs=0.5)
    assert (columns.max() - margin) / 8 == pytest.approx(30, abs=0.5)
    assert (rows.max() - margin) / 8 == pytest.approx(30, abs=0.5)
    assert not drawn[160, 160]


@pytest.mark.parametrize("turns", range(4))
def test_the_top_edge_is_the_thick_one(turns: int) -> None:
    drawn = painted(draw_outlines(Image.new("L", (40, 40)), [np.roll(SQUARE, -turns, axis=0)]), COLORS[0])
    middle = drawn.shape[0] // 2
    thickness = {
        0: drawn[:middle, middle].sum(),
        1: drawn[middle, middle:].sum(),
        2: drawn[middle:, middle].sum(),
        3: drawn[middle, :middle].sum(),
    }
    top = thickness.pop(turns)
    assert top >= 1.5 * max(thickness.values())
    assert min(thickness.values()) >= 2


def test_each_transformer_has_its_colour() -> None:
    outlines = [SQUARE, SQUARE + 5, SQUARE - 5]
    picture = draw_outlines(Image.new("L", (40, 40)), outlines)
    assert [painted(picture, color).any() for color in COLORS[:4]] == [True, True, True, False]


def test_what_lies_outside_gets_room() -> None:
    beside = draw_outlines(Image.new("L", (40, 40)), [SQUARE + np.array([20, 0])])
    assert beside.width == pytest.approx(320 + 80, abs=16)
    assert beside.height == pytest.approx(320, abs=16)
    assert painted(beside, COLORS[0])[:, 350:].any()


@pytest.mark.parametrize("outline", [SQUARE * 1e9, SQUARE * 0, SQUARE - 1e6], ids=["huge", "a point", "far away"])
def test_extreme_outlines_stay_bounded(outline: Array) -> None:
    assert max(draw_outlines(Image.new("L", (40, 40)), [outline]).size) <= 700


def test_curved_outlines() -> None:
    frame = Box(0, 0, 40, 40)
    picture = draw_outlines(Image.new("L", (40, 40)), [source_outline(0.5 * control_points(4), frame)])
    assert painted(picture, COLORS[0]).any()


@pytest.mark.parametrize("text", ["7", "", "a label longer than any picture of it could be wide " * 3, "ünïcödé 鳥"])
def test_captions_stand_below(text: str) -> None:
    picture = Image.new("RGB", (200, 100), "blue")
    with_caption = captioned(picture, text)
    assert with_caption.width == 200
    assert with_caption.height > 100
    np.testing.assert_array_equal(np.asarray(with_caption)[:100], np.asarray(picture))
    ink = np.asarray(with_caption.convert("L"))[100:] < 128
    assert ink.any() == bool(text)
    assert not ink[:, [0, -1]].any()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (5, 3, 2), (9, 3, 3)])
def test_contact_sheets_hold_every_picture(count: int, columns: int, rows: int) -> None:
    pictures = [Image.new("RGB", (20, 10), COLORS[index % 6]) for index in range(count)]
    sheet = contact_sheet(pictures)
    assert sheet.size == (columns * 32 + 12, rows * 22 + 12)
    assert sum(painted(sheet, color).sum() for color in COLORS) == count * 200


def test_large_pictures_shrink_to_the_smallest() -> None:
    sheet = contact_sheet([Image.new("RGB", (400, 200)), Image.new("RGB", (3000, 4000))])
    assert sheet.size == (2 * 412 + 12, 412 + 12)


def test_columns_can_be_chosen() -> None:
    assert contact_sheet([Image.new("RGB", (20, 10))] * 4, columns=4).size == (140, 34)
