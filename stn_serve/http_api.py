"""The HTTP side: the Open Inference Protocol and the typed image API as a plain ASGI application."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from google.protobuf.message import Message

from stn_serve import http_tensors
from stn_serve.errors import (
    Cancelled,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServingError,
    Unsupported,
)
from stn_serve.http_messages import (
    Receive,
    Request,
    Response,
    Scope,
    Send,
    cancelled_on_disconnect,
    error_response,
    json_object,
    json_response,
    read_body,
    send_response,
)
from stn_serve.http_predict import predict_request
from stn_serve.inference import Inference
from stn_serve.proto_json import to_json
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

HEADER_LENGTH = "inference-header-content-length"

_MODEL = r"/models/(?P<model>[^/]+)(?:/versions/(?P<version>\d+))?"


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
        with cancelled_on_disconnect(receive):
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
        asked = json_object(request.body) if request.body else {}
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
        return _message(await self._images.predict(predict_request(request)))


def _message(message: Message) -> Response:
    return json_response(to_json(message))
