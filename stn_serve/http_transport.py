"""The client's side of HTTP: connections that stay open between requests, tensors as raw bytes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import orjson
from google.protobuf import json_format

from stn_serve import errors
from stn_serve.addresses import Address
from stn_serve.failures import error_from_status, unreachable, without_api
from stn_serve.proto import image_prediction_pb2 as pb

InferMessage = Any
"""A message of tritonclient's, which has no types."""

HEADER_LENGTH = "Inference-Header-Content-Length"

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=60)
"""A connection that idles is closed here, before the server does it."""


class Post(NamedTuple):
    """What to send."""

    path: str
    content: bytes
    headers: dict[str, str]
    query: dict[str, int]


class HttpTransport:
    """See `transports.Transport`."""

    def __init__(self, address: Address) -> None:
        self._address = address.text
        self._client = httpx.Client(
            base_url=address.target,
            headers=address.headers,
            verify=address.ssl_context(),
            limits=_LIMITS,
            trust_env=False,
        )

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        return _predictions(self._post(_images_post(request), timeout_s), self._address)

    def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        return _tensors(self._post(_tensors_post(request), timeout_s), self._address)

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    def _post(self, post: Post, timeout_s: float) -> httpx.Response:
        with _explained(self._address, timeout_s):
            return self._client.post(
                post.path, content=post.content, headers=post.headers, params=post.query, timeout=timeout_s
            )


class AsyncHttpTransport:
    """See `transports.AsyncTransport`."""

    def __init__(self, address: Address) -> None:
        self._address = address.text
        self._client = httpx.AsyncClient(
            base_url=address.target,
            headers=address.headers,
            verify=address.ssl_context(),
            limits=_LIMITS,
            trust_env=False,
        )

    async def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        return _predictions(await self._post(_images_post(request), timeout_s), self._address)

    async def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        return _tensors(await self._post(_tensors_post(request), timeout_s), self._address)

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.aclose()

    async def _post(self, post: Post, timeout_s: float) -> httpx.Response:
        with _explained(self._address, timeout_s):
            return await self._client.post(
                post.path, content=post.content, headers=post.headers, params=post.query, timeout=timeout_s
            )


def _images_post(request: pb.PredictRequest) -> Post:
    """A single image as it is, several as JSON."""
    path = f"/v1{_model_path(request.model_name, request.model_version)}/predict"
    options = {"top_k": request.top_k, "crops": request.crops, "crop_side": request.crop_side}
    if len(request.images) == 1:
        return Post(path, request.images[0], {"Content-Type": "application/octet-stream"}, options)
    document = {"images": [b64encode(image).decode() for image in request.images], **options}
    return Post(path, orjson.dumps(document), {"Content-Type": "application/json"}, {})


def _tensors_post(request: InferMessage) -> Post:
    """JSON that names the tensors, followed by their bytes."""
    raw = list(request.raw_input_contents)
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(data)},
        }
        for tensor, data in zip(request.inputs, raw, strict=True)
    ]
    document: dict[str, object] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if request.outputs:
        document["outputs"] = [{"name": tensor.name, "parameters": {"binary_data": True}} for tensor in request.outputs]
    header = orjson.dumps(document)
    return Post(
        f"/v2{_model_path(request.model_name, request.model_version)}/infer",
        b"".join([header, *raw]),
        {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))},
        {},
    )


def _model_path(model: str, version: str) -> str:
    if not model:
        return ""
    return f"/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")


def _predictions(response: httpx.Response, address: str) -> pb.PredictResponse:
    document = _document(response, response.content, address)
    try:
        return json_format.ParseDict(document, pb.PredictResponse(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise errors.ServingError(f"{address} answered with something else than predictions: {error}") from error


def _tensors(response: httpx.Response, address: str) -> InferMessage:
    from tritonclient.grpc import service_pb2  # takes 0.4 s, and few callers need it

    body = memoryview(response.content)
    announced = response.headers.get(HEADER_LENGTH, "")
    length = int(announced) if announced.isdecimal() else len(body)
    document = _document(response, bytes(body[:length]), address)
    message = service_pb2.ModelInferResponse(
        model_name=document.get("model_name", ""), model_version=document.get("model_version", "")
    )
    try:
        for output in document["outputs"]:
            size = output["parameters"]["binary_data_size"]
            message.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            message.raw_output_contents.append(bytes(body[length : length + size]))
            length += size
    except (KeyError, TypeError) as error:
        raise errors.ServingError(f"{address} answered with something else than raw tensors: {error}") from error
    return message


def _document(response: httpx.Response, body: bytes, address: str) -> dict[str, Any]:
    """The JSON of an answer.

    Raises:
        ServingError: it is an error, or no JSON.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if response.status_code == 200 and isinstance(document, dict):
        return document
    raise _explain(response, document, address)


def _explain(response: httpx.Response, document: object, address: str) -> errors.ServingError:
    status = response.status_code
    if isinstance(document, dict) and "error" in document:
        message = str(document["error"])
    elif status == errors.NotFound.http_status:
        return without_api(address)
    else:
        message = f"{address} answered HTTP {status} without a reason"
    error = error_from_status(status, message)
    if isinstance(error, errors.Unavailable):
        error.retry_after_s = _seconds(response.headers.get("Retry-After", ""))
    return error


def _seconds(retry_after: str) -> float:
    """Its other form, a date, tells too little of a server that answers in milliseconds."""
    return float(retry_after) if retry_after.isascii() and retry_after.isdecimal() else 0.0


@contextmanager
def _explained(address: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise errors.DeadlineExceeded(f"no answer from {address} within {timeout_s:.3g} s") from error
    except httpx.TransportError as error:
        raise unreachable(address, "HTTP", str(error)) from error
    except httpx.HTTPError as error:
        raise errors.ServingError(f"{address}: {error}") from error
