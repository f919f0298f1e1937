"""The HTTP side: the Open Inference Protocol and the typed image API as a plain ASGI application."""

from __future__ import annotations

import asyncio
import logging
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import orjson
from google.protobuf.message import Message

from stn_serve import http_tensors
from stn_serve.errors import (
    Cancelled,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    ServingError,
    Unavailable,
    Unsupported,
)
from stn_serve.inference import Inference
from stn_serve.proto import image_prediction_pb2 as messages
from stn_serve.proto_json import to_json
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON = "application/json"
HEADER_LENGTH = "inference-header-content-length"

_MODEL = r"/models/(?P<model>[^/]+)(?:/versions/(?P<version>\d+))?"


@dataclass(frozen=True, slots=True)
class Request:
    """What a handler needs of a request."""

    model: str
    version: str
    headers: Mapping[str, str]
    query: bytes
    body: bytes | bytearray


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers."""

    body: bytes = b""
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)


def json_response(document: object, status: int = 200) -> Response:
    """A document as JSON; numpy scalars and arrays are numbers and lists."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), status)


Handler = Callable[[Request], Awaitable[Response]]


class HttpApi:
    """The ASGI application."""

    def __init__(self, inference: Inference, images: ImagePrediction, max_message_bytes: int) -> None:
        self._inference = inference
        self._images = images
        self._max_message_bytes = max_message_bytes
        self._routes = [
            (re.compile(pattern), method, handler)
            for pattern, method, handler in (
                (rf"/v2{_MODEL}/infer", "POST", self._infer),
                (rf"/v1{_MODEL}/predict", "POST", self._predict),
                ("/v2/health/live", "GET", self._live),
                ("/v2/health/ready", "GET", self._ready),
                ("/v2", "GET", self._server_metadata),
                ("/v2/models/stats", "GET", self._statistics),
                (rf"/v2{_MODEL}", "GET", self._model_metadata),
                (rf"/v2{_MODEL}/ready", "GET", self._model_ready),
                (rf"/v2{_MODEL}/config", "GET", self._model_config),
                (rf"/v2{_MODEL}/stats", "GET", self._statistics),
                ("/v2/repository/index", "POST", self._repository_index),
            )
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            response = await self._respond(scope, receive)
        except Cancelled:
            return
        except ServingError as error:
            response = error_response(error)
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            response = error_response(ServingError("internal error; the server's log tells more"))
        await send_response(send, response)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        handler, names = self._route(scope["method"], scope["path"])
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if headers.get("content-encoding", "identity") != "identity":
            raise Unsupported("Unsupported compression type")
        request = Request(
            model=names.get("model") or "",
            version=names.get("version") or "",
            headers=headers,
            query=scope["query_string"],
            body=await read_body(receive, headers, self._max_message_bytes),
        )
        with _cancelled_on_disconnect(receive):
            return await handler(request)

    def _route(
        self, method: str, path: str
    ) -> tuple[Callable[[Request], Awaitable[Response]], Mapping[str, str | None]]:
        for pattern, allowed, handler in self._routes:
            match = pattern.fullmatch(path)
            if match and method == allowed:
                return handler, match.groupdict()
            if match:
                raise MethodNotAllowed("Method Not Allowed")
        raise NotFound("Not Found")

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = self._inference.server_ready()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _server_metadata(self, _: Request) -> Response:
        return _message(self._inference.server_metadata())

    async def _model_metadata(self, request: Request) -> Response:
        return _message(self._inference.model_metadata(request.model, request.version))

    async def _model_ready(self, request: Request) -> Response:
        if not self._inference.model_ready(request.model, request.version):
            raise InvalidRequest("Model version not ready")
        return json_response({"name": request.model, "ready": True})

    async def _model_config(self, request: Request) -> Response:
        return _message(self._inference.model_config(request.model, request.version).config)

    async def _statistics(self, request: Request) -> Response:
        return _message(self._inference.model_statistics(request.model, request.version))

    async def _repository_index(self, request: Request) -> Response:
        asked = _json_object(request.body) if request.body else {}
        index = to_json(self._inference.repository_index(asked.get("ready") is True))
        return json_response([{name: value for name, value in entry.items() if value} for entry in index["models"]])

    async def _infer(self, request: Request) -> Response:
        self._inference.registry.find(request.model, request.version)  # an unknown model comes before a broken body
        asked = http_tensors.parse(request.model, request.version, request.body, request.headers.get(HEADER_LENGTH))
        body, header_length = http_tensors.serialize(asked, await self._inference.infer(asked.request))
        if header_length is None:
            return Response(body)
        return Response(body, 200, "application/octet-stream", {HEADER_LENGTH: str(header_length)})

    async def _predict(self, request: Request) -> Response:
        return _message(await self._images.predict(_predict_request(request)))


def error_response(error: ServingError) -> Response:
    """An error as the protocol's JSON."""
    headers = {}
    if isinstance(error, Unavailable):
        headers["retry-after"] = "1"
    if isinstance(error, PayloadTooLarge):
        headers["connection"] = "close"  # rather than read what is too much
    return Response(orjson.dumps({"error": str(error)}), error.http_status, JSON, headers)


async def send_response(send: Send, response: Response) -> None:
    """Send a whole response at once."""
    headers = {"content-type": response.content_type, "content-length": str(len(response.body)), **response.headers}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": encoded})
    await send({"type": "http.response.body", "body": response.body})


async def read_body(receive: Receive, headers: Mapping[str, str], max_bytes: int) -> bytes | bytearray:
    """The whole body, never more than `max_bytes`.

    Raises:
        PayloadTooLarge: it is, or announces to be, larger.
        Cancelled: the caller has gone before its end.
    """
    if int(headers.get("content-length", "0")) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Cancelled("the caller has gone away")
        chunk: bytes = event["body"]
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        if not event["more_body"]:
            return body + chunk if body else chunk
        body += chunk


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request body is larger than the {max_bytes} bytes allowed")


@contextmanager
def _cancelled_on_disconnect(receive: Receive) -> Iterator[None]:
    """Cancel what runs inside when the caller goes away, so that it leaves its queue."""
    task = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        if task:
            task.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not (gone and task):
            raise
        task.uncancel()
        raise Cancelled("the caller has gone away") from None
    finally:
        watcher.cancel()


def _message(message: Message) -> Response:
    return json_response(to_json(message))


def _json_object(body: bytes | bytearray) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"failed to parse the request JSON buffer: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("failed to parse the request JSON buffer: expected an object")
    return document


def _predict_request(request: Request) -> messages.PredictRequest:
    """JSON with images in base64, or one encoded image as the body and the rest in the query."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == JSON:
        fields = _json_object(request.body)
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
