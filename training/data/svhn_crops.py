"""What networks see of SVHN's images: crops around the whole number, as the paper's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.composed_numbers import NULL, POSITIONS, Crop
from training.data.mnist import DataError
from training.data.svhn_annotations import FILE, Annotations

TIGHT = 1.3
"""The box around all digits, enlarged by 30 % (Goodfellow et al. 2013, whom the paper follows)."""
LOOSE = (2.0, 3.2)
"""The paper says only 'more loosely': the box is enlarged by this, and stands anywhere in the crop."""
SMALLEST_BOX = 4
"""Pixels a side; of smaller ones nothing can be read."""
SEED = 20110802

Watch = Callable[[int, int], None]
"""Told of the images done, and of all."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """House numbers of at most five digits, and where they are."""

    names: NDArray[np.str_]
    """Files, `[N]`."""
    boxes: NDArray[np.float64]
    """Around all digits: left, top, right, bottom in pixels, `[N, 4]`."""
    targets: NDArray[np.int64]
    """Classes, `[N, 5]`: 0 to 9, then `NULL`."""


def numbers_of(annotations: Annotations) -> Numbers:
    """The numbers that can be read: those of more than five digits are left out, as the paper's."""
    starts = np.concatenate([[0], annotations.counts.cumsum()])
    kept = np.flatnonzero((annotations.counts >= 1) & (annotations.counts <= POSITIONS))
    boxes, targets = np.zeros((len(kept), 4)), np.full((len(kept), POSITIONS), NULL)
    for row, image in enumerate(kept):
        left, top, width, height, label = annotations.digits[starts[image] : starts[image + 1]].T
        boxes[row] = left.min(), top.min(), (left + width).max(), (top + height).max()
        targets[row, : len(label)] = label % 10
    return Numbers(annotations.names[kept], boxes, targets)


def crop_boxes(boxes: NDArray[np.float64], crop: Crop) -> NDArray[np.float64]:
    """What is cut out, before the edges of the image: left, top, right, bottom, `[N, 4]`; the same for every call."""
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum(boxes[:, 2:] - boxes[:, :2], SMALLEST_BOX)
    if crop == "tight":
        return np.concatenate([center - size * TIGHT / 2, center + size * TIGHT / 2], axis=1)
    random = np.random.default_rng(SEED)
    enlarged = size * random.uniform(*LOOSE, (len(boxes), 1))
    center = center + random.uniform(-0.45, 0.45, center.shape) * (enlarged - size)
    return np.concatenate([center - enlarged / 2, center + enlarged / 2], axis=1)


def write_crops(folder: Path, numbers: Numbers, crop: Crop, size: int, path: Path, watch: Watch | None = None) -> None:
    """Cut every number out of its image, into one array file: UINT8 `[N, size, size, 3]`, whole or not at all.

    Raises:
        DataError: an image is missing or damaged, or its boxes are beside it; or the disk is too small.
    """
    temporary = path.with_suffix(".part")
    count = len(numbers.names)
    boxes = crop_boxes(numbers.boxes, crop)
    _check_disk(path.parent, count * size * size * 3)
    crops = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))

    def cut(index: int) -> NDArray[np.uint8]:
        return cut_out(folder / numbers.names[index], boxes[index], size)

    with ThreadPoolExecutor() as pool:
        for index, pixels in enumerate(pool.map(cut, range(count))):
            crops[index] = pixels
            if watch:
                watch(index + 1, count)
    crops.flush()
    temporary.replace(path)


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed or not os.access(folder, os.W_OK):
        raise DataError(
            f"{folder} is to hold {needed / 1e9:.1f} GB of crops, {free / 1e9:.1f} GB are free; make room, make it "
            "writable, or set STN_DATA_DIR to another disk"
        )


def cut_out(path: Path, box: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """A box of an image, as far as it lies inside, stretched to a square: UINT8 `[size, size, 3]`.

    Raises:
        DataError: no such image, a damaged one, or none of the box is inside.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        remedy = f"unpack {path.parent.name}.tar.gz there again"
        raise DataError(f"{path} cannot be read ({error.__class__.__name__}: {error}); {remedy}") from error
    left, top = np.maximum(box[:2], 0)
    right, bottom = np.minimum(box[2:], image.size)
    if right - left < 1 or bottom - top < 1:
        raise DataError(
            f"{path} has {image.width}x{image.height} pixels, but {FILE} puts its number at {box.round().tolist()} "
            f"(left, top, right, bottom); the two do not belong together: unpack {path.parent.name}.tar.gz there again"
        )
    resized = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, right, bottom))
    return np.asarray(resized)
