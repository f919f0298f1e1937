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
    query: dict[str, Any] = {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}
    if query.get("top_k", "").isdecimal():
        query["top_k"] = int(query["top_k"])
    return _filled(request, [bytes(request.body)], query)


def _filled(request: Request, images: list[bytes], fields: Mapping[str, Any]) -> messages.PredictRequest:
    top_k, identifier = fields.get("top_k", 0), fields.get("id", "")
    if type(top_k) is not int or not 0 <= top_k < 2**32:
        raise InvalidRequest(f"'top_k' is {top_k!r}, expected a number >= 0")
    if not isinstance(identifier, str):
        raise InvalidRequest(f"'id' is {identifier!r}, expected a string")
    return messages.PredictRequest(
        model_name=request.model, model_version=request.version, id=identifier, images=images, top_k=top_k
    )


def _decoded(number: int, image: object) -> bytes:
    if not isinstance(image, str):
        raise InvalidRequest(f"image {number} is not a string in base64")
    try:
        return b64decode(image, validate=True)
    except ValueError as error:
        raise InvalidRequest(f"image {number} is not base64: {error}") from error
