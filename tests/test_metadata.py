from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stn_serve.metadata import SCHEMA_VERSION, ControlGrid, InputImage, ModelMetadata, Transformer

AFFINE = ModelMetadata(
    task="classification",
    labels=("zero", "één", "二"),
    input=InputImage(height=42, width=40, color="gray"),
    transform="affine",
    transformers=(Transformer(name="st", place="image", output_size=(28, 20)),),
)
SPLINE = ModelMetadata(
    task="sequence",
    labels=("a",),
    input=InputImage(height=64, width=64, color="rgb", resize="crop"),
    transform="thin_plate_spline",
    transformers=(
        Transformer(name="first", place="image", output_size=(64, 64)),
        Transformer(name="second", place="conv2", output_size=(32, 32)),
    ),
    control_grid=ControlGrid(size=4, regularization=0.01),
)
PLAIN = ModelMetadata(task="classification", labels=("cat", "dog"), input=InputImage(height=8, width=8, color="rgb"))


@pytest.mark.parametrize("metadata", [AFFINE, SPLINE, PLAIN])
def test_json_and_back(metadata: ModelMetadata) -> None:
    assert ModelMetadata.from_json(metadata.to_json()) == metadata


def test_the_document_says_its_version() -> None:
    assert json.loads(AFFINE.to_json())["schema_version"] == SCHEMA_VERSION


def test_channels_follow_the_colour() -> None:
    assert (AFFINE.input.channels, SPLINE.input.channels) == (1, 3)


@pytest.mark.parametrize("document", ["", "not json", "[]", "null", "3", '"text"', "{}", "[" * 100_000])
def test_what_is_not_a_document_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match="'stn' is not a JSON object with a schema_version"):
        ModelMetadata.from_json(document)


def test_another_schema_version_is_refused() -> None:
    with pytest.raises(ValueError, match="has schema_version 2, expected 1"):
        ModelMetadata.from_json('{"schema_version": 2}')


@pytest.mark.parametrize("field", ["task", "labels", "input", "transform", "transformers", "control_grid"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = json.loads(AFFINE.to_json())
    del fields[field]
    with pytest.raises(ValueError, match=field):
        ModelMetadata.from_json(json.dumps(fields))


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        ModelMetadata.from_json(json.dumps({**json.loads(AFFINE.to_json()), "colour": "gray"}))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("task",), "regression", "task is 'regression', expected one of classification, sequence"),
        (("transform",), "afine", "transform is 'afine', expected one of None, translation"),
        (("transform",), None, "transform is None with 1 transformers"),
        (("transform",), "thin_plate_spline", "control_grid None"),
        (("transformers",), [], "transform is 'affine' with 0 transformers"),
        (("control_grid",), {"size": 4}, "transform is 'affine' with control_grid"),
        (("control_grid",), {"size": 1}, "control_grid.size is 1, expected a whole number of at least 2"),
        (("control_grid",), {"size": 4, "regularization": -1}, "control_grid.regularization is -1"),
        (("control_grid",), {"size": 4, "regularization": "much"}, "control_grid.regularization is 'much'"),
        (("labels",), 3, "int"),
        (("labels",), "abc", "labels is 'abc', expected a list of strings"),
        (("labels",), ["a", 3], "labels holds 3, expected a string"),
        (("input",), 3, "InputImage"),
        (("input", "color"), "cmyk", "input.color is 'cmyk', expected one of gray, rgb"),
        (("input", "resize"), "pad", "input.resize is 'pad', expected one of stretch, crop"),
        (("input", "height"), 0, "input.height is 0"),
        (("input", "width"), "40", "input.width is '40', expected a whole number of at least 1"),
        (("input", "width"), 40.0, "input.width is 40.0"),
        (("input", "depth"), 1, "depth"),
        (("transformers", 0, "name"), None, "transformers.name holds None"),
        (("transformers", 0, "output_size"), [28], "not enough values"),
        (("transformers", 0, "output_size"), [28, 0], "transformers.output_size is 0"),
        (("transformers", 0), 3, "mapping"),
    ],
)
def test_an_ill_typed_field_is_named(path: tuple[Any, ...], value: object, said: str) -> None:
    document = json.loads(AFFINE.to_json())
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    with pytest.raises(ValueError, match="'stn' does not fit its schema") as raised:
        ModelMetadata.from_json(json.dumps(document))
    assert said in str(raised.value)


def test_transformers_are_told_apart_by_name() -> None:
    first = AFFINE.transformers[0]
    with pytest.raises(ValueError, match="transformers are named st, st, expected each name once"):
        replace(AFFINE, transformers=(first, first))


def test_metadata_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"input\.height is -1"):
        InputImage(height=-1, width=1, color="rgb")
