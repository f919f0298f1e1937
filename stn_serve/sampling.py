"""The transformer's crop, cut out of the caller's image at its full resolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stn_serve.poses import Array, Box, map_points


def rectify(
    image: NDArray[np.uint8], theta: ArrayLike, frame: Box, size: tuple[int, int], regularization: float = 0.0
) -> NDArray[np.uint8]:
    """What a transformer sees of an image `[H, W, C]`, as `[height, width, C]`; `size` is (height, width).

    Theta refers to `frame`, the part of the image that the model's input covers. Bilinear between pixel centres; beyond
    the frame its edge repeats. Not antialiased: ask for no less than the region's own size and shrink the result.
    """
    height, width = size
    positions = frame.to_pixels(map_points(theta, _pixel_centres(height, width), regularization))
    return sample(image, positions, frame).reshape(height, width, image.shape[2])


def sample(image: NDArray[np.uint8], positions: Array, frame: Box) -> NDArray[np.uint8]:
    """Colours `[N, C]` of an image `[H, W, C]` at positions `[N, 2]` in pixels."""
    rows, columns = image.shape[:2]
    left, right, x_weight = _neighbours(positions[:, 0], frame.left, frame.right, columns)
    top, bottom, y_weight = _neighbours(positions[:, 1], frame.top, frame.bottom, rows)
    upper = image[top, left] * (1 - x_weight) + image[top, right] * x_weight
    lower = image[bottom, left] * (1 - x_weight) + image[bottom, right] * x_weight
    return np.rint(upper * (1 - y_weight) + lower * y_weight).astype(np.uint8)


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
