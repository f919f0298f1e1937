from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from google.protobuf import json_format
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates

from stn_serve.description import Prepared, describe
from stn_serve.errors import InvalidRequest
from stn_serve.image_sources import encode, open_image
from stn_serve.images import decode, fit
from stn_serve.metadata import ControlGrid, InputImage, ModelMetadata, Resize, Transformer, TransformKind
from stn_serve.poses import Array, Box, control_points, map_points
from stn_serve.prediction import Prediction, Transform
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto_json import to_json
from stn_serve.sampling import rectify, sample

Pixels = NDArray[np.uint8]

QUARTER = [[0.5, 0, -0.5], [0, 0.5, -0.5]]
"""Looks at the top left quarter."""


@pytest.fixture
def image() -> Pixels:
    """Smooth, so that bilinear sampling can be held against functions of the position."""
    rows, columns = np.mgrid[:60, :90]
    return np.stack([columns * 2, rows * 3, columns + rows], axis=-1).astype(np.uint8)


def answer(
    image: Pixels,
    *thetas: object,
    kind: TransformKind = "affine",
    resize: Resize = "stretch",
    regularization: float = 0,
) -> Prediction:
    """What the server says of an image, for a model of 32 x 32 pixels that answers with these thetas."""
    metadata = ModelMetadata(
        task="classification",
        labels=("cat", "dog", "owl"),
        input=InputImage(height=32, width=32, color="rgb", resize=resize),
        transform=kind if thetas else None,
        transformers=tuple(
            Transformer(name=f"look{index}", place="image", output_size=(16, 24)) for index in range(len(thetas))
        ),
        control_grid=ControlGrid(size=4, regularization=regularization) if kind == "thin_plate_spline" else None,
    )
    pixels, box = fit(image, metadata.input)
    outputs = {"logits": np.array([[0.0, 2, 1]]), "theta": np.array([thetas], np.float32)}
    message = describe(metadata, Prepared(pixels, box, image.shape[1], image.shape[0]), outputs, top_k=2)
    return Prediction.from_message(message, "pets", "3")


def test_a_prediction_reads_as_the_server_meant_it(image: Pixels) -> None:
    prediction = answer(image, QUARTER)
    assert (prediction.label, prediction.labels) == ("dog", ("dog", "owl"))
    assert prediction.probability == pytest.approx(np.exp(2) / (1 + np.e + np.exp(2)))
    assert (prediction.model_name, prediction.model_version) == ("pets", "3")
    assert prediction.image_size == (60, 90)
    assert prediction.input_box == Box(0, 0, 90, 60)
    [transform] = prediction.transforms
    assert (transform.name, transform.kind, transform.place) == ("look0", "affine", "image")
    assert transform.theta.tolist() == QUARTER
    assert transform.quad.tolist() == [[0, 0], [45, 0], [45, 30], [0, 30]]
    assert transform.outline.tolist() == transform.quad.tolist()
    assert transform.output_size == (16, 24)
    assert transform.pose.scale == pytest.approx((0.5, 0.5))
    assert "theta" not in repr(prediction)


def test_transformers_are_found_by_position_and_name(image: Pixels) -> None:
    prediction = answer(image, QUARTER, np.eye(2, 3))
    assert prediction.transform(1) is prediction.transform("look1") is prediction.transforms[1]
    with pytest.raises(LookupError, match="model pets has no transformer 'stem', it has: look0, look1"):
        prediction.transform("stem")
    with pytest.raises(LookupError, match="it has: none"):
        answer(image).transform()


def test_sampling_agrees_with_scipy(image: Pixels) -> None:
    positions = np.random.default_rng(0).uniform(-5, 95, (500, 2))
    sampled = sample(image, positions, Box(0, 0, 90, 60))
    for channel in range(3):
        coordinates = positions.T[::-1] - 0.5
        expected = map_coordinates(image[..., channel].astype(float), coordinates, order=1, mode="nearest")
        np.testing.assert_allclose(sampled[:, channel], expected, atol=0.51)


def test_sampling_a_single_pixel() -> None:
    pixel = np.full((1, 1, 1), 9, np.uint8)
    assert sample(pixel, np.array([(-3.0, 0.2), (0.5, 0.5), (9.0, 9.0)]), Box(0, 0, 1, 1)).tolist() == [[9], [9], [9]]


@pytest.mark.parametrize("theta", [QUARTER, [[0.5, 0.3, 0.4], [-0.4, 0.6, 0.2]]])
def test_the_crop_is_what_torch_samples(image: Pixels, theta: list[list[float]]) -> None:
    channels = torch.tensor(image).permute(2, 0, 1)[None].float()
    grid = torch.nn.functional.affine_grid(torch.tensor([theta]), [1, 3, 16, 24], align_corners=False)
    seen = torch.nn.functional.grid_sample(channels, grid, padding_mode="border", align_corners=False)
    crop = rectify(image, theta, Box(0, 0, 90, 60), (16, 24))
    np.testing.assert_allclose(crop, seen[0].permute(1, 2, 0).numpy(), atol=0.51)


def test_the_identity_gives_the_image_back(image: Pixels) -> None:
    np.testing.assert_array_equal(rectify(image, np.eye(2, 3), Box(0, 0, 90, 60), (60, 90)), image)


def test_rectify_keeps_the_resolution_of_the_image(image: Pixels) -> None:
    """45 x 30 pixels of the image, in the proportions of a 24 x 16 output."""
    rectified = answer(image, QUARTER).rectify(image)
    assert rectified.size == (45, 30)
    np.testing.assert_array_equal(np.asarray(rectified), image[:30, :45])


def test_rectify_at_a_size_asked_for(image: Pixels) -> None:
    rectified = answer(image, QUARTER).rectify(Image.fromarray(image), "look0", size=(10, 15))
    assert rectified.size == (15, 10)
    expected = image[:30, :45].reshape(10, 3, 15, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(rectified)[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1)


def test_rectify_where_the_input_is_a_crop(image: Pixels) -> None:
    """The model sees the 60 x 60 pixels in the middle; the identity looks at all it sees."""
    prediction = answer(image, np.eye(2, 3), resize="crop")
    assert prediction.transforms[0].quad.tolist() == [[15, 0], [75, 0], [75, 60], [15, 60]]
    rectified = np.asarray(prediction.rectify(image, size=(60, 60))).astype(int)
    assert np.abs(rectified - image[:, 15:75]).max() <= 2


PROJECTIVE = np.array([[0.6, 0.1, 0.1], [-0.1, 0.5, 0.2], [0.2, 0.1, 1]])
SPLINE = 0.6 * control_points(4) + 0.05 * np.random.default_rng(0).standard_normal((16, 2))


@pytest.mark.parametrize(
    ("kind", "theta", "regularization"),
    [("projective", PROJECTIVE, 0.0), ("thin_plate_spline", SPLINE, 0.0), ("thin_plate_spline", SPLINE, 0.1)],
)
def test_rectify_curved_transforms(image: Pixels, kind: TransformKind, theta: Array, regularization: float) -> None:
    """Red tells the column, green the row: each pixel of the crop shows where it came from."""
    prediction = answer(image, theta, kind=kind, regularization=regularization)
    rectified = np.asarray(prediction.rectify(image))
    height, width = rectified.shape[:2]
    for row, column in ((3, 5), (height // 2, width // 2), (height - 4, width - 2)):
        target = np.array([[(column + 0.5) / width, (row + 0.5) / height]]) * 2 - 1
        x, y = prediction.input_box.to_pixels(map_points(theta, target, regularization))[0]
        red, green, _ = rectified[row, column]
        assert red == pytest.approx(2 * (x - 0.5), abs=0.6)
        assert green == pytest.approx(3 * (y - 0.5), abs=0.6)
    corners = prediction.transforms[0].outline[[0, prediction.transforms[0].outline.shape[0] // 4]]
    np.testing.assert_allclose(corners, prediction.transforms[0].quad[:2])


def test_rectify_far_outside_and_huge_stays_bounded(image: Pixels) -> None:
    prediction = answer(image, [[1000.0, 0, 0], [0, 1000, 0]])
    assert max(prediction.rectify(image).size) <= 2048
    assert answer(image, [[0.5, 0, 50], [0, 0.5, 50]]).rectify(image).getcolors() == [(45 * 30, (178, 177, 148))]


def test_another_image_is_refused(image: Pixels) -> None:
    for use in (answer(image, QUARTER).rectify, answer(image, QUARTER).draw):
        with pytest.raises(ValueError, match="the image has 90 x 59 pixels, the prediction is about one of 90 x 60"):
            use(image[1:])


def test_a_theta_that_is_not_finite_leaves_the_classes(image: Pixels) -> None:
    prediction = answer(image, np.full((2, 3), np.nan), QUARTER)
    lost = prediction.transforms[0]
    assert prediction.label == "dog"
    assert lost.quad.shape == lost.outline.shape == (0, 2)
    assert np.isnan(lost.pose.rotation_degrees)
    with pytest.raises(ValueError, match="look0 looked nowhere"):
        prediction.rectify(image)
    assert prediction.draw(image).width > 320


def test_numbers_that_json_lacks_survive_it() -> None:
    message = pb.Transform(theta=[np.nan, np.inf, -np.inf, 0.1], theta_shape=[2, 2])
    document = orjson.loads(orjson.dumps(to_json(message), option=orjson.OPT_SERIALIZE_NUMPY))
    assert document["theta"] == ["NaN", "Infinity", "-Infinity", 0.1]
    theta = Transform.from_message(json_format.ParseDict(document, pb.Transform())).theta
    np.testing.assert_allclose(theta, [[np.nan, np.inf], [-np.inf, 0.1]])


def as_file(path: Path, pixels: Pixels) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def as_bytes(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("form", [lambda pixels: pixels, Image.fromarray, as_bytes])
def test_every_source_opens_as_the_server_decodes_it(image: Pixels, form: Callable[[Pixels], Image.Image]) -> None:
    np.testing.assert_array_equal(np.asarray(open_image(form(image))), image)
    np.testing.assert_array_equal(decode(encode(form(image)), "rgb"), image)


def test_paths_are_sources(image: Pixels, tmp_path: Path) -> None:
    path = as_file(tmp_path / "image.png", image)
    for source in (path, str(path)):
        assert encode(source) == path.read_bytes()
        np.testing.assert_array_equal(np.asarray(open_image(source)), image)
    with pytest.raises(InvalidRequest, match=r"cannot read the image .*missing.png: No such file"):
        encode(tmp_path / "missing.png")
    with pytest.raises(InvalidRequest, match="directory"):
        encode(tmp_path)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_gray_arrays_stay_gray(shape: tuple[int, ...]) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(shape)
    opened = open_image(pixels)
    assert opened.mode == "L"
    np.testing.assert_array_equal(decode(encode(pixels), "gray")[..., 0], pixels.reshape(4, 6))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16", "F", "LA"])
def test_pillow_images_of_any_mode(mode: str) -> None:
    source = Image.new(mode, (5, 4))
    assert open_image(source).mode in ("L", "RGB")
    assert decode(encode(source), "rgb").shape == (4, 5, 3)


def test_pillow_images_are_turned_upright(image: Pixels, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_array_equal(np.asarray(open_image(turned)), np.rot90(image, -1))
        np.testing.assert_array_equal(decode(encode(turned), "rgb"), decode(encode(tmp_path / "turned.png"), "rgb"))


@pytest.mark.parametrize(
    ("pixels", "came"),
    [
        (np.zeros((4, 4), np.float32), r"float32 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"uint8 \[1, 3, 8, 8\]"),
        (np.zeros((0, 4), np.uint8), r"uint8 \[0, 4\]"),
    ],
)
def test_other_arrays_are_refused(pixels: Pixels, came: str) -> None:
    with pytest.raises(InvalidRequest, match=f"expected an image as a uint8 array .*got {came}"):
        encode(pixels)
