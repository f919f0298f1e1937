"""From a caller's encoded image to one row of the input `image`.

Whatever the bytes are, they end as an array or as `InvalidRequest`. The size is read from the header and checked before
any pixel is decoded, and a file of countless tiny parts is given up, for Pillow takes each part in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from stn_serve.errors import InvalidRequest, PayloadTooLarge
from stn_serve.metadata import Color, InputImage
from stn_serve.poses import Box

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is decoded; the other formats that Pillow knows stay closed to untrusted bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """How large an encoded image may be."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    """Width times height. Pillow itself refuses images of more than 179 million."""


DEFAULT_LIMITS = ImageLimits()

MAX_COMPRESSED_TEXTS = 16
"""Parts of a PNG that are inflated with its header, each to a megabyte at most."""


def decode(data: bytes, color: Color, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Decode JPEG, PNG, WebP or BMP to `[height, width, channels]`, the way a person sees it.

    The EXIF orientation is applied, what is transparent lies on white, 16 bits lose the lower 8, an animation gives its
    first frame. Gray is ITU-R 601 luma.

    Raises:
        InvalidRequest: empty, of another format, truncated or broken; PayloadTooLarge where it exceeds the limits.
    """
    return read_pixels(open_header(data, limits), color)


def open_header(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read the header only, and hold the image against the limits; `read_pixels` goes on from here.

    Raises:
        InvalidRequest: empty or of another format; PayloadTooLarge where it exceeds the limits.
    """
    if not data:
        raise InvalidRequest("the image is empty: 0 bytes")
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"the image has {len(data)} bytes, more than the {limits.max_bytes} allowed")
    image = _open(data)
    if image.width * image.height > limits.max_pixels:
        raise PayloadTooLarge(
            f"the image has {image.width} x {image.height} pixels, more than the {limits.max_pixels} allowed"
        )
    return image


def read_pixels(image: Image.Image, color: Color) -> Pixels:
    """The rest of `decode`, for an image that was opened; closes it, for it would hold its pixels.

    Raises:
        InvalidRequest: truncated or broken.
    """
    try:
        return to_pixels(_upright(image), color)
    except Exception as error:  # whatever a decoder stumbles over lies in the bytes
        raise InvalidRequest(f"the {image.format} image is truncated or broken: {error}") from error
    finally:
        image.close()


def to_pixels(image: Image.Image, color: Color) -> Pixels:
    """A Pillow image of any mode as `[height, width, channels]`; transparency and depth as in `decode`."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if color == "gray" else "RGB"
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if color == "gray" else pixels


def fit(image: Pixels, target: InputImage) -> tuple[Pixels, Box]:
    """Bring an image `[H, W, C]` to the input's size: bilinear, antialiased where it shrinks, untouched where it fits.

    Returns:
        Pixels `[target.height, target.width, C]`, and the part of `image` they cover.
    """
    height, width = image.shape[:2]
    box = covered(width, height, target)
    if (height, width) == (target.height, target.width):
        return image, box
    source = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    resized = source.resize(
        (target.width, target.height), Image.Resampling.BILINEAR, box=(box.left, box.top, box.right, box.bottom)
    )
    return np.array(resized).reshape(target.height, target.width, image.shape[2]), box


def covered(width: int, height: int, target: InputImage) -> Box:
    """The part of an image of this size that a network's input shows."""
    if target.resize == "stretch":
        return Box(0, 0, width, height)
    # Not by a common scale: rounding would push the side that is covered whole beyond the image.
    covered_width = min(width, height * target.width / target.height)
    covered_height = min(height, width * target.height / target.width)
    # On whole pixels, so that a crop without a change of scale copies them.
    left, top = (width - covered_width) // 2, (height - covered_height) // 2
    return Box(left, top, left + covered_width, top + covered_height)


class _PatientReader(BytesIO):
    """Gives up where a file is read in parts too small to be of an honest picture."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads_left = 10_000 + len(data) // 512

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("it consists of too many parts")
        return super().read(size)


def _open(data: bytes) -> Image.Image:
    if data.startswith(b"\x89PNG") and _count_compressed_texts(data) > MAX_COMPRESSED_TEXTS:
        raise InvalidRequest(f"the PNG image holds more than {MAX_COMPRESSED_TEXTS} compressed texts")
    try:
        return Image.open(_PatientReader(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PayloadTooLarge(f"the image has too many pixels: {error}") from error
    except Exception as error:  # whatever a decoder stumbles over lies in the bytes
        raise InvalidRequest(
            f"expected an image as JPEG, PNG, WebP or BMP, got {len(data)} bytes of {_format_name(data)}"
        ) from error


def _count_compressed_texts(data: bytes) -> int:
    return sum(data.count(kind) for kind in (b"zTXt", b"iTXt", b"iCCP"))


_SIGNATURES = {
    b"GIF8": "a GIF",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"PK\3\4": "a ZIP archive",
    b"\xff\xd8": "a JPEG with a broken header",
    b"\x89PNG": "a PNG with a broken header",
    b"RIFF": "a WebP with a broken header",
    b"BM": "a BMP with a broken header",
    b"<": "HTML, SVG or XML",
}


def _format_name(data: bytes) -> str:
    if data[4:8] == b"ftyp":
        return "HEIC, AVIF or another format of the MP4 family"
    return next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), "something else")


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # a PNG may hold its EXIF after the pixels
    method = _UPRIGHT.get(_orientation(image) or 1)
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation; None where the EXIF is broken, for its picture is still good."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's EXIF parser raises whatever it stumbles over
        return None
