"""Where heads and bodies are on the photos of CUB-200-2011: annotations that no network is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stn_serve.images import covered
from stn_serve.metadata import InputImage
from training.data.photos import Photo
from training.data.tables import read_table

GROUPS = {
    "head": ("beak", "crown", "forehead", "left eye", "right eye", "throat"),
    "body": ("back", "belly", "breast"),
}

Points = NDArray[np.float64]
"""`[n, 2]`, x before y, normalised to [-1, 1] over the network's input."""


def locate(group: str, photos: Sequence[Photo], folder: Path, target: InputImage) -> list[Points | None]:
    """Visible points of a group of parts, photo by photo; None where none is visible or some lie outside the input.

    Args:
        group: a key of `GROUPS`.
        photos: from the data set.
        folder: of the data set, with `parts/`.
        target: how photos become the network's input.

    Raises:
        DataError: the tables are not there.
    """
    pixels = _read_pixels(group, folder)
    return [_normalised(pixels.get(photo.path), photo.path, target) for photo in photos]


def _read_pixels(group: str, folder: Path) -> dict[Path, Points]:
    names = dict(read_table(folder / "parts" / "parts.txt"))
    files = {key: folder / "images" / name for key, name in read_table(folder / "images.txt")}
    found: dict[Path, list[tuple[float, float]]] = {}
    for key, row in read_table(folder / "parts" / "part_locs.txt"):
        part, x, y, visible = row.split()
        if visible == "1" and names[part] in GROUPS[group] and key in files:
            found.setdefault(files[key], []).append((float(x), float(y)))
    return {path: np.array(points) for path, points in found.items()}


def _normalised(points: Points | None, path: Path, target: InputImage) -> Points | None:
    if points is None:
        return None
    with Image.open(path) as image:
        box = covered(*image.size, target)
    placed = (points - (box.left, box.top)) / (box.right - box.left, box.bottom - box.top) * 2 - 1
    return placed if (np.abs(placed) <= 1).all() else None
