from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stn_serve.errors import InvalidRequest, PayloadTooLarge
from stn_serve.images import ImageLimits, covered, decode, fit
from stn_serve.metadata import InputImage
from stn_serve.poses import Box


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    """No two rows or columns alike, so that every flip and turn shows."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) * 3], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("file_format", ["PNG", "BMP"])
def test_lossless_formats_come_back_as_they_were(file_format: str) -> None:
    image = gradient()
    np.testing.assert_array_equal(decode(encoded(image, file_format), "rgb"), np.asarray(image))


@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_nearly(file_format: str) -> None:
    image = gradient(96, 64)
    decoded = decode(encoded(image, file_format, quality=98), "rgb")
    assert np.abs(decoded.astype(int) - np.asarray(image)).mean() < 3


def test_gray_has_one_channel_of_luma() -> None:
    red = Image.new("RGB", (3, 2), (255, 0, 0))
    decoded = decode(encoded(red), "gray")
    assert decoded.shape == (2, 3, 1)
    assert decoded.dtype == np.uint8
    assert np.all(decoded == 76)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    upright = np.asarray(gradient(96, 64))
    turns = {  # how a camera held that way stores an upright picture
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(turns[orientation])), file_format, exif=exif, quality=98)
    decoded = decode(data, "rgb")
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).mean() < 3


def test_broken_exif_does_not_cost_the_picture() -> None:
    image = gradient()
    data = encoded(image, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(3))
    np.testing.assert_array_equal(decode(data, "rgb"), np.asarray(image))


def test_transparent_parts_lie_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)])
    assert decode(encoded(image), "rgb")[0].tolist() == [[10, 20, 30], [255, 255, 255], [127, 127, 127]]


def test_transparent_gray_lies_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(40, 255), (0, 0)])
    assert decode(encoded(image), "gray")[0, :, 0].tolist() == [40, 255]


def test_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 1, 2, 3])
    image.putdata([0, 1])
    assert decode(encoded(image), "rgb")[0].tolist() == [[200, 100, 50], [1, 2, 3]]
    assert decode(encoded(image, transparency=1), "rgb")[0].tolist() == [[200, 100, 50], [255, 255, 255]]


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values)), "gray")
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]


def test_one_bit_and_cmyk() -> None:
    assert decode(encoded(Image.new("1", (2, 2), 1)), "gray").max() == 255
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode(encoded(ink, "JPEG", quality=98), "rgb")[4, 4].astype(int)
    assert red > 240
    assert max(green, blue) < 15


def test_an_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for file_format in ("PNG", "WEBP"):
        data = encoded(first, file_format, save_all=True, append_images=[second], lossless=True)
        assert decode(data, "rgb")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "0 bytes"),
        (b"hello", "something else"),
        (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC"),
        (b"%PDF-1.7" + bytes(64), "PDF"),
        (b"<svg></svg>", "SVG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (encoded(Image.new("L", (4, 4)), "GIF"), "GIF"),
        (encoded(Image.new("L", (4, 4)), "TIFF"), "TIFF"),
    ],
)
def test_anything_else_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        decode(data, "rgb")


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_jpeg_cut_at_any_byte(options: dict[str, Any]) -> None:
    check_cut_at_any_byte(encoded(gradient(), "JPEG", **options))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP"])
def test_others_cut_at_any_byte(file_format: str) -> None:
    check_cut_at_any_byte(encoded(gradient(), file_format))


def check_cut_at_any_byte(data: bytes) -> None:
    """Half a picture is never taken for a whole one; one that only lacks its end marker may pass."""
    whole = decode(data, "rgb")
    for length in range(len(data)):
        try:
            decoded = decode(data[:length], "rgb")
        except InvalidRequest:
            continue
        np.testing.assert_array_equal(decoded, whole, err_msg=f"cut to {length} of {len(data)} bytes")


@given(data=st.data(), file_format=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]))
def test_damaged_bytes_give_pixels_or_invalid_request(data: st.DataObject, file_format: str) -> None:
    damaged = bytearray(encoded(gradient(), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidRequest):
        assert decode(bytes(damaged), "rgb", ImageLimits(max_pixels=10_000)).shape[2] == 3


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("side", [7_100, 10_000, 30_000, 2**31 - 1])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    pixels = struct.pack(">I", 4) + b"IDAT" + bytes(8)
    with pytest.raises(PayloadTooLarge, match="pixels"):
        decode(png_header(side, side) + pixels, "rgb")


def countless_jpeg_markers() -> bytes:
    data = encoded(gradient(), "JPEG")
    return data[:2] + b"\xff\xe5\x00\x02" * 200_000 + data[2:]


def png_with(*chunks: bytes) -> bytes:
    data = encoded(gradient())
    return data[:33] + b"".join(chunks) + data[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "data",
    [
        countless_jpeg_markers(),
        png_with(chunk(b"teSt", b"") * 100_000),
        png_with(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 9)))] * 60),
    ],
    ids=["jpeg markers", "png chunks", "inflated texts"],
)
def test_files_of_countless_parts_are_given_up(data: bytes) -> None:
    """Each costs Pillow seconds before it has seen a pixel."""
    with pytest.raises(InvalidRequest, match=r"broken header|compressed texts"):
        decode(data, "rgb")


def test_honest_extras_are_no_hindrance() -> None:
    extras = [chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * 1000)), chunk(b"teSt", bytes(9)) * 100]
    assert decode(png_with(*extras), "rgb").shape == (16, 24, 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8))
    for file_format in ("PNG", "JPEG", "WEBP", "BMP"):
        assert decode(encoded(noise, file_format), "rgb").shape == (1000, 1000, 3)


def test_limits_are_the_callers() -> None:
    data = encoded(gradient())
    with pytest.raises(PayloadTooLarge, match=f"{len(data)} bytes, more than the 10 allowed"):
        decode(data, "rgb", ImageLimits(max_bytes=10))
    with pytest.raises(PayloadTooLarge, match="24 x 16 pixels, more than the 383 allowed"):
        decode(data, "rgb", ImageLimits(max_pixels=383))
    assert decode(data, "rgb", ImageLimits(max_bytes=len(data), max_pixels=384)).shape == (16, 24, 3)


def test_fit_leaves_a_fitting_image_alone() -> None:
    image = np.asarray(gradient())
    for resize in ("stretch", "crop"):
        fitted, box = fit(image, InputImage(height=16, width=24, color="rgb", resize=resize))
        assert fitted is image
        assert box == Box(0, 0, 24, 16)


def test_stretch_covers_the_whole_image() -> None:
    fitted, box = fit(np.asarray(gradient()), InputImage(height=10, width=10, color="rgb"))
    assert fitted.shape == (10, 10, 3)
    assert box == Box(0, 0, 24, 16)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(8, 8, Box(4, 0, 20, 16)), (32, 32, Box(4, 0, 20, 16)), (16, 48, Box(0, 4, 24, 12)), (16, 23, Box(0, 0, 23, 16))],
)
def test_crop_covers_the_centre(height: int, width: int, box: Box) -> None:
    fitted, covered = fit(np.asarray(gradient()), InputImage(height=height, width=width, color="rgb", resize="crop"))
    assert fitted.shape == (height, width, 3)
    assert covered == box


def test_crop_without_a_change_of_scale_copies_pixels() -> None:
    image = np.asarray(gradient())
    fitted, _ = fit(image, InputImage(height=16, width=11, color="rgb", resize="crop"))
    np.testing.assert_array_equal(fitted, image[:, 6:17])


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None]
    fitted, _ = fit(stripes, InputImage(height=8, width=8, color="gray"))
    assert fitted.shape == (8, 8, 1)
    assert np.abs(fitted.astype(int) - 127).max() <= 8


def test_enlarging_is_bilinear_between_pixel_centres() -> None:
    image = np.array([[0, 100]], np.uint8)[..., None]
    fitted, _ = fit(image, InputImage(height=1, width=4, color="gray"))
    assert fitted[0, :, 0].tolist() == [0, 25, 75, 100]


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 512), st.integers(1, 512))
def test_a_crop_never_leaves_the_image(width: int, height: int, target_width: int, target_height: int) -> None:
    """Not by the last bit either: Pillow refuses it. 320 * (448 / 320) is 448.00000000000006."""
    target = InputImage(height=target_height, width=target_width, color="rgb", resize="crop")
    box = covered(width, height, target)
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height


def test_a_sliver_can_be_cropped() -> None:
    fitted, box = fit(np.full((1, 1000, 3), 7, np.uint8), InputImage(height=8, width=8, color="rgb", resize="crop"))
    assert np.all(fitted == 7)
    assert box == Box(499, 0, 500, 1)
