"""What a caller may give for an image: encoded bytes, a path, a Pillow image or an array."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stn_serve.errors import InvalidRequest
from stn_serve.images import decode, to_pixels
from stn_serve.metadata import Color

ImageSource = bytes | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
"""A string is a path. An array is UINT8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`."""


def encode(source: ImageSource) -> bytes:
    """The bytes to send: files and bytes as they are, pixels as PNG.

    Raises:
        InvalidRequest: a file that cannot be read, or an array of another type or shape.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return _read(source)
    buffer = BytesIO()
    open_image(source).save(buffer, "PNG", compress_level=1)  # the network is faster than a better compression
    return buffer.getvalue()


def open_image(source: ImageSource) -> Image.Image:
    """The image as the server sees it, gray (`L`) or RGB, upright: the frame that pixel coordinates refer to.

    Raises:
        InvalidRequest: as for `encode` and `stn_serve.images.decode`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        color: Color = "gray" if Image.getmodebase(source.mode) == "L" else "rgb"
        return _from_array(to_pixels(ImageOps.exif_transpose(source), color))
    return _from_array(decode(encode(source), "rgb"))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read the image {os.fspath(path)}: {error.strerror}") from error


def _from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in (2, 3)
        or pixels.shape[2:] not in ((), (1,), (3,))
        or not pixels.size
    ):
        raise InvalidRequest(
            f"expected an image as a uint8 array [H, W], [H, W, 1] or [H, W, 3], "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
