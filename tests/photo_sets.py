"""Small data sets of photos on disk: coloured squares on gray, in the layouts that people and CUB-200-2011 use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}


def write_photo(
    path: Path, color: str, *, size: tuple[int, int] = (96, 64), square: tuple[int, int] = (40, 20)
) -> None:
    """A square of 20 pixels with its left upper corner at `square`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(100, 140, (size[1], size[0], 3), np.uint8)
    left, top = square
    pixels[top : top + 20, left : left + 20] = COLORS[color]
    Image.fromarray(pixels).save(path)


def write_classes(folder: Path, count: int = 5) -> None:
    """A folder for each colour."""
    for color in COLORS:
        for index in range(count):
            write_photo(folder / color / f"{index}.png", color, size=(96 + index, 64), square=(30 + 4 * index, 20))


def write_birds(folder: Path) -> None:
    """Two species with three photos each, the last of each tested, in the official layout."""
    names = {"1": "001.Red_Bird", "2": "002.Blue_winged_Bird"}
    rows = [(str(3 * index + number + 1), key, number) for index, key in enumerate(names) for number in range(3)]
    files = {key: f"{names[label]}/{number}.jpg" for key, label, number in rows}
    for key, label, number in rows:
        write_photo(folder / "images" / files[key], "red" if label == "1" else "blue", square=(10 + 20 * number, 20))
    tables: dict[str, Mapping[str, object]] = {
        "images.txt": files,
        "image_class_labels.txt": {key: label for key, label, _ in rows},
        "train_test_split.txt": {key: int(number < 2) for key, _, number in rows},
        "classes.txt": names,
        "parts/parts.txt": {"1": "back", "2": "beak", "3": "left eye"},
    }
    (folder / "parts").mkdir()
    for name, table in tables.items():
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in table.items()))
    parts = "".join(f"{key} 1 0 0 0\n{key} 2 {22 + 20 * number} 24 1\n{key} 3 30 30 0\n" for key, _, number in rows)
    (folder / "parts" / "part_locs.txt").write_text(parts)
