"""What a model says of itself: the JSON under the ONNX metadata key `stn`.

The exporter writes it, the server reads it. It holds what a tensor signature cannot: what the labels mean, how an image
becomes the input tensor, and what each slice of `theta` transforms.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, Self, get_args

METADATA_KEY = "stn"
SCHEMA_VERSION = 1

Task = Literal["classification", "sequence"]
Color = Literal["gray", "rgb"]
Resize = Literal["stretch", "crop"]
TransformKind = Literal[
    "translation", "attention", "similarity", "affine", "projective", "thin_plate_spline", "affine_3d"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputImage:
    """How a caller's image becomes one row of the input `image`, UINT8 `[batch, height, width, channels]`."""

    height: int
    width: int
    color: Color
    resize: Resize = "stretch"
    """`stretch` maps the whole image onto the input; `crop` scales the shorter side and takes the centre."""

    def __post_init__(self) -> None:
        _at_least("input.height", self.height, 1)
        _at_least("input.width", self.width, 1)
        _one_of("input.color", self.color, get_args(Color))
        _one_of("input.resize", self.resize, get_args(Resize))

    @property
    def channels(self) -> int:
        """1 for gray, 3 for RGB."""
        return 1 if self.color == "gray" else 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlGrid:
    """Target control points of a thin plate spline: `size` x `size`, regular on [-1, 1]^2, row by row."""

    size: int
    regularization: float = 0.0

    def __post_init__(self) -> None:
        _at_least("control_grid.size", self.size, 2)
        if not isinstance(self.regularization, int | float) or not 0 <= self.regularization < inf:
            raise ValueError(f"control_grid.regularization is {self.regularization!r}, expected a number, not negative")


@dataclass(frozen=True, kw_only=True, slots=True)
class Transformer:
    """One spatial transformer: slice `s` of the output `theta` `[batch, S, ...]`."""

    name: str
    place: str
    """What it samples: `image`, or the feature map it stands before, such as `conv2`."""
    output_size: tuple[int, int]
    """Height and width of the map it produces."""

    def __post_init__(self) -> None:
        _string("transformers.name", self.name)
        _string("transformers.place", self.place)
        for side in self.output_size:
            _at_least("transformers.output_size", side, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelMetadata:
    """The document under the metadata key `stn`; `from_json` and `to_json` are inverse."""

    task: Task
    labels: tuple[str, ...]
    input: InputImage
    transform: TransformKind | None = None
    """Kind of every transformer of this model; None for a network without one."""
    transformers: tuple[Transformer, ...] = ()
    control_grid: ControlGrid | None = None
    """Only for `thin_plate_spline`."""

    def __post_init__(self) -> None:
        _one_of("task", self.task, get_args(Task))
        _one_of("transform", self.transform, (None, *get_args(TransformKind)))
        for label in self.labels:
            _string("labels", label)
        names = [transformer.name for transformer in self.transformers]
        if len(set(names)) < len(names):
            raise ValueError(f"transformers are named {', '.join(names)}, expected each name once")
        if (self.transform is None) != (not self.transformers):
            raise ValueError(f"transform is {self.transform!r} with {len(self.transformers)} transformers")
        if (self.transform == "thin_plate_spline") != (self.control_grid is not None):
            raise ValueError(f"transform is {self.transform!r} with control_grid {self.control_grid}")

    def to_json(self) -> str:
        """The document as compact JSON."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, document: str) -> Self:
        """Parse and check a document.

        Raises:
            ValueError: not JSON, an unknown schema version, or a missing, unknown or ill-typed field; names the field.
        """
        try:
            fields = json.loads(document)
            version = fields.pop("schema_version")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ValueError(f"metadata '{METADATA_KEY}' is not a JSON object with a schema_version") from error
        if version != SCHEMA_VERSION:
            raise ValueError(f"metadata '{METADATA_KEY}' has schema_version {version}, expected {SCHEMA_VERSION}")
        try:
            return cls._from_fields(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"metadata '{METADATA_KEY}' does not fit its schema: {error}") from error

    @classmethod
    def _from_fields(
        cls,
        *,
        task: Task,
        labels: list[str] | str,
        input: dict[str, Any],  # noqa: A002 - the document's own name
        transform: TransformKind | None,
        transformers: list[dict[str, Any]],
        control_grid: dict[str, Any] | None,
    ) -> Self:
        if isinstance(labels, str):
            raise ValueError(f"labels is {labels!r}, expected a list of strings")  # noqa: TRY004 - as in _string
        return cls(
            task=task,
            labels=tuple(labels),
            input=InputImage(**input),
            transform=transform,
            transformers=tuple(_transformer(**fields) for fields in transformers),
            control_grid=ControlGrid(**control_grid) if control_grid else None,
        )


def _transformer(*, name: str, place: str, output_size: list[int]) -> Transformer:
    height, width = output_size
    return Transformer(name=name, place=place, output_size=(height, width))


def _at_least(field: str, value: object, smallest: int) -> None:
    if type(value) is not int or value < smallest:
        raise ValueError(f"{field} is {value!r}, expected a whole number of at least {smallest}")


def _string(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{field} holds {value!r}, expected a string")  # noqa: TRY004 - documents that do not fit are ValueErrors


def _one_of(field: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}, expected one of {', '.join(map(str, allowed))}")
