from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from small_networks import Exported, SmallNetwork, export, exported, node, noise, set_attribute

from export.parity_picture import CELL, GAP, TEXT_HEIGHT, draw_worst
from export.repository import draft
from training.stn import Affine

CHECKS = 6


@pytest.mark.parametrize("name", ["affine", "affine_3d", "sequence", "series", "supersampled"])
def test_each_check_has_a_row_and_nothing_to_tell_apart(name: str, tmp_path: Path) -> None:
    picture = picture_of(exported(name), exported(name).model, tmp_path)
    assert picture is not None
    assert picture.width > 4 * CELL
    assert picture.height > CHECKS * CELL
    for row in range(CHECKS):
        np.testing.assert_array_equal(cell(picture, row, 1), cell(picture, row, 2))


def test_what_is_broken_is_seen(tmp_path: Path) -> None:
    """Nearest for bilinear: the crop that is half a pixel off differs, those that are not do not."""
    still = export(SmallNetwork(Affine((14, 12)), head_std=0.0))
    broken = still.copy()
    set_attribute(node(broken, "GridSample"), "mode", "nearest")
    picture = picture_of(still, broken, tmp_path)
    assert picture is not None
    differences = [int(np.abs(cell(picture, row, 1) - cell(picture, row, 2)).max()) for row in range(CHECKS)]
    assert differences[0] == differences[1] == 0
    assert differences[2] > 50
    assert cell(picture, 2, 3).max() == 255


def test_without_transformers_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert picture_of(exported("none"), exported("none").model, tmp_path) is None


def picture_of(of: Exported, model: onnx.ModelProto, repository: Path) -> Image.Image | None:
    with draft(repository, "small") as entry:
        onnx.save(model, entry.version_directory / "model.onnx")
        config = entry.configure(of.contract, 3)
        return draw_worst(of.network, entry.directory, entry.version, config, noise(5, of.network.input_size))


def cell(picture: Image.Image, row: int, column: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    left = GAP + column * (CELL + GAP)
    top = 2 * GAP + TEXT_HEIGHT + row * (CELL + GAP + TEXT_HEIGHT)
    return np.asarray(picture.convert("L").crop((left, top, left + CELL, top + CELL))).astype(np.int64)
