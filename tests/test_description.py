from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from stn_serve import poses
from stn_serve.description import MAX_CROP_SIDE, Prepared, add_crops, describe
from stn_serve.metadata import InputImage, ModelMetadata, Transformer
from stn_serve.prediction import Prediction

DIGITS = (*"0123456789", "")


def house_number(*labels: str, certainty: float = 9.0) -> Prediction:
    """What the client says of logits that stand for these labels."""
    metadata = ModelMetadata(task="sequence", labels=DIGITS, input=InputImage(height=8, width=8, color="gray"))
    logits = np.zeros((1, len(labels), len(DIGITS)), np.float32)
    for position, label in enumerate(labels):
        logits[0, position, DIGITS.index(label)] = np.log(certainty * 10)
    prepared = Prepared(np.zeros((8, 8, 1), np.uint8), poses.Box(0, 0, 8, 8), 8, 8)
    return Prediction.from_message(describe(metadata, prepared, {"logits": logits}, 2), "numbers", "1")


def test_a_sequence_is_read_as_text() -> None:
    prediction = house_number("4", "0", "7", "", "")
    assert prediction.label == "407"
    assert prediction.probability == pytest.approx(0.9**5)
    assert len(prediction.positions) == 5
    assert prediction.positions[2].labels[0] == "7"
    assert prediction.positions[2].probabilities == pytest.approx((0.9, 0.01))


def test_a_sequence_may_be_empty() -> None:
    assert house_number("", "").labels == ("",)


def crop_of(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], size: tuple[int, int], side: int) -> Image.Image:
    """The crop of an attention transform to the right half."""
    metadata = ModelMetadata(
        task="classification",
        labels=("a",),
        input=InputImage(height=8, width=8, color="rgb"),
        transform="affine",
        transformers=(Transformer(name="look", place="image", output_size=size),),
    )
    height, width = image.shape[:2]
    prepared = Prepared(image, poses.Box(0, 0, width, height), width, height)
    theta = np.array([[[[0.5, 0, 0.5], [0, 1, 0]]]], np.float32)
    prediction = describe(metadata, prepared, {"logits": np.zeros((1, 1)), "theta": theta}, 1)
    add_crops(prediction, image, side)
    crop = Prediction.from_message(prediction, "halves", "1").transforms[0].crop
    assert crop is not None
    return crop


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((4, 6), 0, (6, 4)), ((4, 6), 3, (3, 2)), ((6, 4), 300, (200, 300)), ((1000, 500), 0, (256, 512))],
)
def test_crops_have_the_size_asked_for(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    image = np.zeros((50, 100, 3), np.uint8)
    image[:, 50:] = (10, 200, 30)
    crop = crop_of(image, size, side)
    assert crop.size == expected
    assert crop.getpixel((expected[0] // 2, expected[1] // 2)) == (10, 200, 30)


def test_gray_crops_are_gray() -> None:
    assert crop_of(np.zeros((50, 100, 1), np.uint8), (4, 4), MAX_CROP_SIDE).mode == "L"


def test_no_crop_where_theta_is_not_finite() -> None:
    metadata = ModelMetadata(
        task="classification",
        labels=("a",),
        input=InputImage(height=8, width=8, color="gray"),
        transform="affine",
        transformers=(Transformer(name="look", place="image", output_size=(4, 4)),),
    )
    image = np.zeros((8, 8, 1), np.uint8)
    outputs = {"logits": np.zeros((1, 1)), "theta": np.full((1, 1, 2, 3), np.nan)}
    message = describe(metadata, Prepared(image, poses.Box(0, 0, 8, 8), 8, 8), outputs, 1)
    add_crops(message, image, 0)
    prediction = Prediction.from_message(message, "lost", "1")
    assert prediction.transforms[0].crop is None
    with BytesIO() as picture:
        prediction.draw(np.zeros((8, 8), np.uint8)).save(picture, "PNG")
