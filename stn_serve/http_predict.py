"""`POST /v1/models/NAME/predict`: the typed image API's request from JSON, or from an image as the body."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from stn_serve.errors import InvalidRequest
from stn_serve.http_messages import JSON, Request, json_object
from stn_serve.proto import image_prediction_pb2 as messages


def predict_request(request: Request) -> messages.PredictRequest:
    """JSON with images in base64, or one encoded image as the body and the rest in the query."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON:
        fields = json_object(request.body)
        images = fields.get("images", [])
        if not isinstance(images, list):
            raise InvalidRequest("'images' must be an array of images in base64")
        return _filled(request, [_decoded(number, image) for number, image in enumerate(images)], fields)
    query = {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}
    return _filled(
        request,
        [bytes(request.body)],
        {name: value if name == "id" else _from_query(value) for name, value in query.items()},
    )


def _filled(request: Request, images: list[bytes], fields: Mapping[str, Any]) -> messages.PredictRequest:
    return messages.PredictRequest(
        model_name=request.model,
        model_version=request.version,
        id=_get(fields, "id", "", "a string"),
        images=images,
        top_k=_number(fields, "top_k"),
        crops=_get(fields, "crops", False, "true or false"),
        crop_side=_number(fields, "crop_side"),
    )


def _from_query(value: str) -> object:
    """A number, a flag, or the string as it is, which the check of its field will refuse."""
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else value


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = int(_get(fields, name, 0, "a number >= 0"))
    if not 0 <= value < 2**32:
        raise InvalidRequest(f"'{name}' is {value}, expected a number >= 0")
    return value


def _get(fields: Mapping[str, Any], name: str, default: object, expected: str) -> Any:  # noqa: ANN401 - the default's type
    value = fields.get(name, default)
    if type(value) is not type(default):
        raise InvalidRequest(f"'{name}' is {value!r}, expected {expected}")
    return value


def _decoded(number: int, image: object) -> bytes:
    if not isinstance(image, str):
        raise InvalidRequest(f"image {number} is not a string in base64")
    try:
        return b64decode(image, validate=True)
    except ValueError as error:
        raise InvalidRequest(f"image {number} is not base64: {error}") from error
