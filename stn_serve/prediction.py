"""What the client returns for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from math import nan
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image

from stn_serve.drawing import draw
from stn_serve.image_sources import ImageSource, open_image
from stn_serve.poses import Array, Box, Pose
from stn_serve.sampling import rectify, rectify_antialiased, region_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stn_serve.proto import image_prediction_pb2 as pb

LARGEST_CROP = 2048
"""Sides of a rectified crop end here unless a size is asked for."""


NO_POSE = Pose(
    rotation_degrees=nan, scale=(nan, nan), shear=nan, translation=(nan, nan), determinant=nan, inside_ratio=nan
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Transform:
    """Where one spatial transformer looked. Pixels are those of the caller's image, (0, 0) its top left corner.

    Where theta is not finite, quad and outline are empty and the pose is NaN.
    """

    name: str
    kind: str
    """translation, attention, similarity, affine, projective or thin_plate_spline."""
    place: str
    """What it samples: `image`, or the feature map it stands before."""
    theta: Array = field(repr=False)
    """The map from output (target) to input (source), as in `stn_serve.poses`: `[2, 3]`, `[3, 3]` or `[P, 2]`."""
    quad: Array = field(repr=False)
    """`[4, 2]` in pixels: where the output's top left, top right, bottom right and bottom left corners lie."""
    outline: Array = field(repr=False)
    """`[N, 2]` in pixels, clockwise from the top left; the quad where its sides are straight."""
    pose: Pose
    output_size: tuple[int, int]
    """Height and width of the map that the transformer produces."""
    regularization: float = 0.0
    """Of a thin plate spline."""
    crop: Image.Image | None = field(default=None, repr=False)
    """What the transformer saw, where crops were asked for; None where theta is not finite."""

    @classmethod
    def from_message(cls, message: pb.Transform) -> Self:
        """Take over the server's answer."""
        return cls(
            name=message.name,
            kind=message.kind,
            place=message.place,
            theta=np.array(message.theta, np.float64).reshape(tuple(message.theta_shape)),
            quad=_points(message.quad),
            outline=_points(message.outline),
            pose=_pose(message.pose) if message.HasField("pose") else NO_POSE,
            output_size=(message.output_height, message.output_width),
            regularization=message.regularization,
            crop=Image.open(BytesIO(message.crop), formats=("PNG",)) if message.crop else None,
        )


@dataclass(frozen=True, slots=True)
class Position:
    """One character of a sequence; both as of `Prediction`. An empty label means that nothing stands there."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Classes and transformations of one image."""

    labels: tuple[str, ...]
    """The most probable first, as many as were asked for. Of a model that reads a sequence: its whole text."""
    probabilities: tuple[float, ...]
    transforms: tuple[Transform, ...]
    """One for each spatial transformer of the model."""
    image_size: tuple[int, int]
    """Height and width of the caller's image, upright."""
    input_box: Box
    """The part of the image that the model's input covers; the [-1, 1] of every theta refers to it."""
    model_name: str
    model_version: str
    positions: tuple[Position, ...] = ()
    """Of a model that reads a sequence, such as a house number."""

    @classmethod
    def from_message(cls, message: pb.Prediction, model_name: str, model_version: str) -> Self:
        """Take over the server's answer."""
        box, sequence = message.input_box, message.sequence
        is_text = message.HasField("sequence")
        return cls(
            labels=(sequence.text,) if is_text else _labels(message.classes),
            probabilities=(sequence.probability,) if is_text else _probabilities(message.classes),
            positions=tuple(
                Position(_labels(position.classes), _probabilities(position.classes)) for position in sequence.positions
            ),
            transforms=tuple(Transform.from_message(transform) for transform in message.transforms),
            image_size=(message.image_height, message.image_width),
            input_box=Box(box.left, box.top, box.right, box.bottom),
            model_name=model_name,
            model_version=model_version,
        )

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Of `label`, between 0 and 1."""
        return self.probabilities[0]

    def transform(self, transformer: int | str = 0) -> Transform:
        """One transformer's answer, by position or by name.

        Raises:
            LookupError: the model has no such transformer.
        """
        for position, transform in enumerate(self.transforms):
            if transformer in (position, transform.name):
                return transform
        names = ", ".join(transform.name for transform in self.transforms) or "none"
        raise LookupError(f"model {self.model_name} has no transformer {transformer!r}, it has: {names}")

    def rectify(
        self, image: ImageSource, transformer: int | str = 0, size: tuple[int, int] | None = None
    ) -> Image.Image:
        """The crop that a transformer saw, cut out of the caller's image at its full resolution.

        Args:
            image: the image this prediction is about.
            transformer: position or name.
            size: height and width; by default the transformer's proportions, and the image's resolution.

        Raises:
            LookupError: the model has no such transformer.
            ValueError: theta is not finite, or the image has another size than the one this prediction is about.
        """
        transform = self.transform(transformer)
        if not transform.quad.size:
            raise ValueError(f"transformer {transform.name} looked nowhere: its theta is not finite")
        pixels = np.atleast_3d(np.asarray(self._open(image)))
        cut = rectify_antialiased if size else rectify
        crop = cut(pixels, transform.theta, self.input_box, size or _full_size(transform), transform.regularization)
        return Image.fromarray(crop[..., 0] if crop.shape[2] == 1 else crop)

    def draw(self, image: ImageSource) -> Image.Image:
        """A picture of the answer: each transformer's outline on the image, the crop it saw, label and probability.

        Raises:
            ValueError: the image has another size than the one this prediction is about.
        """
        return draw(self._open(image), self)

    def _open(self, image: ImageSource) -> Image.Image:
        """The image this prediction is about, upright.

        Raises:
            ValueError: it has another size.
        """
        opened = open_image(image)
        if (opened.height, opened.width) != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"the image has {opened.width} x {opened.height} pixels, "
                f"the prediction is about one of {width} x {height}"
            )
        return opened


def _labels(classes: Iterable[pb.ClassProbability]) -> tuple[str, ...]:
    return tuple(entry.label for entry in classes)


def _probabilities(classes: Iterable[pb.ClassProbability]) -> tuple[float, ...]:
    return tuple(entry.probability for entry in classes)


def _pose(message: pb.Pose) -> Pose:
    return Pose(
        rotation_degrees=message.rotation_degrees,
        scale=tuple(message.scale),
        shear=message.shear,
        translation=tuple(message.translation),
        determinant=message.determinant,
        inside_ratio=message.inside_ratio,
    )


def _points(points: Iterable[pb.Point]) -> Array:
    return np.array([(point.x, point.y) for point in points], np.float64).reshape(-1, 2)


def _full_size(transform: Transform) -> tuple[int, int]:
    """The transformer's output size, enlarged until no detail of the region is lost."""
    height, width = transform.output_size
    region_height, region_width = region_size(transform.quad)
    scale = max(1.0, region_width / width, region_height / height)
    scale = min(scale, max(1.0, LARGEST_CROP / max(height, width)))
    return round(height * scale), round(width * scale)
