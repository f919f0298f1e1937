"""The transformer's crop, cut out of the caller's image at its full resolution."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stn_serve.poses import Array, Box, map_points, source_quad

LARGEST_STRIP = 2**16
"""Pixels of a crop that are computed together: a spline needs hundreds of bytes for each."""

MAX_OVERSAMPLING = 4
"""Samples of one pixel of the crop, along each side, beyond what averaging the image saves."""


def rectify(
    image: NDArray[np.uint8], theta: ArrayLike, frame: Box, size: tuple[int, int], regularization: float = 0.0
) -> NDArray[np.uint8]:
    """What a transformer sees of an image `[H, W, C]`, as `[height, width, C]`; `size` is (height, width).

    Theta refers to `frame`, the part of the image that the model's input covers. Bilinear between pixel centres; beyond
    the frame its edge repeats. Not antialiased, as the transformer itself is not: see `rectify_antialiased`.
    """
    height, width = size
    targets = _pixel_centres(height, width)
    strips = np.array_split(targets, ceil(len(targets) / LARGEST_STRIP))
    sampled = [sample(image, frame.to_pixels(map_points(theta, strip, regularization)), frame) for strip in strips]
    return np.concatenate(sampled).reshape(height, width, image.shape[2])


def rectify_antialiased(
    image: NDArray[np.uint8], theta: ArrayLike, frame: Box, size: tuple[int, int], regularization: float = 0.0
) -> NDArray[np.uint8]:
    """As `rectify`, with pixels averaged instead of skipped where the crop is coarser than the image.

    First the image's are, until two lie in one of the crop along its finer side, then the crop's: so the time it takes
    hangs on the size of the crop, and hardly on the image's.
    """
    rows, columns = _coarseness(theta, frame, size, regularization)
    factor = max(1, min(int(rows) // 2, int(columns) // 2, *image.shape[:2]))
    rows, columns = (min(ceil(coarseness / factor), MAX_OVERSAMPLING) for coarseness in (rows, columns))
    frame = Box(frame.left / factor, frame.top / factor, frame.right / factor, frame.bottom / factor)
    larger = (size[0] * rows, size[1] * columns)
    return _shrink(rectify(_shrink(image, factor, factor), theta, frame, larger, regularization), rows, columns)


def region_size(quad: Array) -> tuple[float, float]:
    """Height and width of a quad `[4, 2]` in pixels: the longer of opposite sides."""
    sides = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return float(sides[1::2].max()), float(sides[0::2].max())


def sample(image: NDArray[np.uint8], positions: Array, frame: Box) -> NDArray[np.uint8]:
    """Colours `[N, C]` of an image `[H, W, C]` at positions `[N, 2]` in pixels."""
    rows, columns = image.shape[:2]
    left, right, x_weight = _neighbours(positions[:, 0], frame.left, frame.right, columns)
    top, bottom, y_weight = _neighbours(positions[:, 1], frame.top, frame.bottom, rows)
    upper = image[top, left] * (1 - x_weight) + image[top, right] * x_weight
    lower = image[bottom, left] * (1 - x_weight) + image[bottom, right] * x_weight
    return np.rint(upper * (1 - y_weight) + lower * y_weight).astype(np.uint8)


def _coarseness(theta: ArrayLike, frame: Box, size: tuple[int, int], regularization: float) -> tuple[float, float]:
    """How many pixels of the image lie in one of the crop, along its height and its width; at least 1."""
    height, width = region_size(source_quad(theta, frame, regularization))
    return max(1.0, height / size[0]), max(1.0, width / size[1])


def _shrink(image: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Average blocks of pixels of an image `[H, W, C]`."""
    if rows == columns == 1:
        return image
    source = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.atleast_3d(np.asarray(source.reduce((columns, rows))))


def _neighbours(
    position: Array, low: float, high: float, count: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Indices before and after each position `[N]`, and the weight `[N, 1]` of the one after."""
    index = np.clip(position, low + 0.5, high - 0.5) - 0.5
    before = np.clip(np.floor(index), 0, count - 1).astype(np.intp)
    weight = np.clip(index - before, 0, 1)
    return before, np.minimum(before + 1, count - 1), weight[:, None]


def _pixel_centres(height: int, width: int) -> Array:
    """Normalised, `[height * width, 2]`, row by row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([(columns + 0.5) / width, (rows + 0.5) / height], axis=-1).reshape(-1, 2) * 2 - 1
