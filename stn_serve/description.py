"""One row of a model's outputs in the caller's terms: labels, probabilities, pixels of the image as it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stn_serve import poses
from stn_serve.errors import ModelFailure
from stn_serve.metadata import ModelMetadata, Transformer
from stn_serve.proto import image_prediction_pb2 as messages
from stn_serve.sampling import rectify_antialiased

Array = NDArray[Any]
Pixels = NDArray[np.uint8]

MAX_CROP_SIDE = 512
"""Pixels. Whoever wants larger crops has the image: see `Prediction.rectify` of the client."""


class Prepared(NamedTuple):
    """A decoded image as the model's input, and what ties it to the caller's."""

    pixels: Pixels
    box: poses.Box
    width: int
    height: int
    whole: Pixels | None = None
    """The caller's image `[height, width, C]`, where crops will be cut out of it."""


def describe(metadata: ModelMetadata, prepared: Prepared, outputs: dict[str, Array], top_k: int) -> messages.Prediction:
    """One row of logits and theta as a prediction, without crops.

    Raises:
        ModelFailure: the logits are not finite.
    """
    box = prepared.box
    prediction = messages.Prediction(
        image_width=prepared.width,
        image_height=prepared.height,
        input_box=messages.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom),
    )
    logits = outputs["logits"][0]
    if metadata.task == "sequence":
        prediction.sequence.CopyFrom(_sequence(metadata.labels, logits, top_k))
    else:
        prediction.classes.extend(_classes(metadata.labels, logits, top_k))
    thetas = outputs["theta"][0] if metadata.transformers else ()
    prediction.transforms.extend(
        _transform(metadata, transformer, theta, box)
        for transformer, theta in zip(metadata.transformers, thetas, strict=True)
    )
    return prediction


def add_crops(prediction: messages.Prediction, image: Pixels, side: int) -> None:
    """Cut what each transformer saw out of the caller's image `[H, W, C]`; `side` as in `PredictRequest.crop_side`."""
    box = prediction.input_box
    frame = poses.Box(box.left, box.top, box.right, box.bottom)
    for transform in prediction.transforms:
        if transform.quad:
            theta = np.reshape(transform.theta, tuple(transform.theta_shape))
            size = _crop_size(transform.output_height, transform.output_width, side)
            transform.crop = _png(rectify_antialiased(image, theta, frame, size, transform.regularization))


def _crop_size(height: int, width: int, side: int) -> tuple[int, int]:
    longer = max(height, width)
    scale = (side or min(longer, MAX_CROP_SIDE)) / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def _png(pixels: Pixels) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _sequence(labels: Sequence[str], logits: Array, top_k: int) -> messages.Sequence:
    """Logits `[P, K]` as the text that is most probable position by position."""
    positions = [messages.Position(classes=_classes(labels, position, top_k)) for position in logits]
    return messages.Sequence(
        text="".join(position.classes[0].label for position in positions),
        probability=prod(position.classes[0].probability for position in positions),
        positions=positions,
    )


def _classes(labels: Sequence[str], logits: Array, top_k: int) -> list[messages.ClassProbability]:
    if not np.isfinite(logits).all():
        raise ModelFailure("the model's logits are not finite")
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [
        messages.ClassProbability(index=index, label=labels[index], probability=probabilities[index]) for index in best
    ]


def _transform(metadata: ModelMetadata, transformer: Transformer, theta: Array, box: poses.Box) -> messages.Transform:
    regularization = metadata.control_grid.regularization if metadata.control_grid else 0.0
    height, width = transformer.output_size
    transform = messages.Transform(
        name=transformer.name,
        kind=metadata.transform or "",
        place=transformer.place,
        theta=theta.ravel().tolist(),
        theta_shape=theta.shape,
        output_width=width,
        output_height=height,
        regularization=regularization,
    )
    if np.isfinite(theta).all():  # else there is nothing to draw, and the classes still stand
        transform.quad.extend(_points(poses.source_quad(theta, box, regularization)))
        transform.outline.extend(_points(poses.source_outline(theta, box, regularization)))
        transform.pose.CopyFrom(_pose(poses.pose(theta, box, regularization)))
    return transform


def _points(positions: Array) -> list[messages.Point]:
    return [messages.Point(x=x, y=y) for x, y in positions.tolist()]


def _pose(pose: poses.Pose) -> messages.Pose:
    return messages.Pose(
        rotation_degrees=pose.rotation_degrees,
        scale=pose.scale,
        shear=pose.shear,
        translation=pose.translation,
        determinant=pose.determinant,
        inside_ratio=pose.inside_ratio,
    )
