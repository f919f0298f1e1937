"""A photo from a phone, asked as it is: the answer must lie where a person sees the thing. Here that place is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_models import SPOT_SCALE, publish_spot
from PIL import Image, ImageColor
from served import Served, running

from stn_serve import Client, Prediction
from stn_serve.drawing import COLORS, draw_outlines
from stn_serve.image_sources import open_image

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 4000, 3000
SPOT = (2200, 1000)
"""x, y of the centre of what is to be found, upright: right of the middle and above it."""

TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # how a camera that is held so stores an upright picture
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.fixture(scope="module")
def spot_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    repository = tmp_path_factory.mktemp("spot")
    publish_spot(repository)
    with running(repository) as served:
        yield served


@pytest.fixture(params=["grpc", "http"])
def stn(request: pytest.FixtureRequest, spot_server: Served) -> Iterator[Client]:
    with Client(spot_server.grpc if request.param == "grpc" else f"http://{spot_server.http}") as client:
        yield client


def scene(scale: float) -> Pixels:
    """Black, with a white spot of a twentieth of the width that is red in the middle."""
    rows = np.arange(round(HEIGHT * scale)) + 0.5 - SPOT[1] * scale
    columns = np.arange(round(WIDTH * scale)) + 0.5 - SPOT[0] * scale
    distance = np.hypot(rows[:, None], columns)
    pixels = np.zeros((*distance.shape, 3), np.uint8)
    pixels[distance < 75 * scale] = 255
    pixels[distance < 25 * scale] = (255, 0, 0)
    return pixels


def photo(upright: Pixels, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    stored.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def check_place(prediction: Prediction, scale: float) -> None:
    """The quad is a tenth of the upright image around the spot, to within a pixel of the model's input."""
    height, width = HEIGHT * scale, WIDTH * scale
    assert prediction.image_size == pytest.approx((height, width))
    quad = prediction.transforms[0].quad
    assert np.abs(quad.mean(axis=0) - np.array(SPOT) * scale).max() < max(height, width) / 64
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array([width, height]) * SPOT_SCALE / 2
    np.testing.assert_allclose(quad - quad.mean(axis=0), corners, rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_place_is_right_however_the_camera_was_held(stn: Client, orientation: int) -> None:
    check_place(stn.predict(photo(scene(0.1), orientation)), 0.1)


def test_twelve_megapixels_turned_by_exif(stn: Client, tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.JPG"
    path.write_bytes(photo(scene(1), 6))
    with Image.open(path) as stored:
        assert stored.size == (HEIGHT, WIDTH), "stored lying on its side"
    prediction = stn.predict(path, crops=True, crop_side=100)
    check_place(prediction, 1)

    [transform] = prediction.transforms
    assert transform.crop is not None
    middle = (transform.crop.width // 2, transform.crop.height // 2)
    assert transform.crop.getpixel(middle) == pytest.approx(76, abs=5), "red as gray, the model's colour"
    rectified = prediction.rectify(path)
    assert is_red(rectified.getpixel((rectified.width // 2, rectified.height // 2)))
    assert prediction.draw(path).height > 1024

    # The drawing shows the image upright, 1024 pixels high: the outline around the spot, and the spot in it.
    drawing = np.asarray(draw_outlines(open_image(path), [transform.outline])).astype(int)
    shrunk = 1024 / HEIGHT
    offset = 6  # of the room for lines beside the image
    x, y = (round(coordinate * shrunk) + offset for coordinate in SPOT)
    assert is_red(drawing[y, x])
    left, right, top, bottom = (transform.quad * shrunk).round().astype(int)[[0, 1, 0, 2], [0, 0, 1, 1]] + offset
    outline = np.abs(drawing - np.array(ImageColor.getrgb(COLORS[0]))).max(axis=-1) < 40
    assert outline[(top + bottom) // 2, [left, right]].all()
    assert outline[[top, bottom], (left + right) // 2].all()
    assert not outline[y, x]


def is_red(pixel: object) -> bool:
    red, green, blue = np.asarray(pixel).tolist()
    return bool(red > 200 and max(green, blue) < 60)
