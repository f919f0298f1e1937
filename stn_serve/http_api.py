"""The HTTP side: the Open Inference Protocol and the typed image API as a plain ASGI application."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from google.protobuf.message import Message

from stn_serve import calls, http_tensors, openapi
from stn_serve.access import OPEN, Access
from stn_serve.compression import compress, decompress, preferred_encoding
from stn_serve.control import Control
from stn_serve.errors import (
    Cancelled,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    ServingError,
)
from stn_serve.http_control import HttpControl
from stn_serve.http_messages import (
    Receive,
    Request,
    Response,
    Route,
    Scope,
    Send,
    cancelled_on_disconnect,
    error_response,
    json_response,
    read_body,
    send_response,
)
from stn_serve.http_predict import predict_request
from stn_serve.inference import Inference
from stn_serve.proto_json import to_json
from stn_serve.signature import ModelSignature
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

HEADER_LENGTH = "inference-header-content-length"

MAX_PATH = 128
"""Characters of a path that is not ours which the log repeats."""


class HttpApi:
    """The ASGI application."""

    def __init__(
        self,
        inference: Inference,
        control: Control,
        images: ImagePrediction,
        max_message_bytes: int,
        access: Access = OPEN,
    ) -> None:
        self._access = access
        self._inference = inference
        self._shared_memory = control.shared_memory
        self._images = images
        self._max_message_bytes = max_message_bytes
        version = "[/versions/{version}]"
        self.routes = (
            Route("POST", f"/v2/models/{{model}}{version}/infer", "inference", self._infer),
            Route("POST", f"/v1/models/{{model}}{version}/predict", "inference", self._predict),
            Route("POST", "/v1/predict", "inference", self._predict),
            Route("GET", "/v2/health/live", "health", self._live),
            Route("GET", "/v2/health/ready", "health", self._ready),
            Route("GET", "/v2", "metadata", self._server_metadata),
            Route("GET", "/v2/models/stats", "statistics", self._statistics),
            Route("GET", f"/v2/models/{{model}}{version}", "metadata", self._model_metadata),
            Route("GET", f"/v2/models/{{model}}{version}/ready", "health", self._model_ready),
            Route("GET", f"/v2/models/{{model}}{version}/config", "model-config", self._model_config),
            Route("GET", f"/v2/models/{{model}}{version}/stats", "statistics", self._statistics),
            Route("GET", "/openapi.json", "metadata", self._openapi),
            *HttpControl(inference, control).routes,
        )
        self._patterns = [(route.pattern(), route) for route in self.routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        operation = f"{scope['method']} {scope['path'][:MAX_PATH]}"
        with calls.Call("http", operation, lambda: scope["headers"]) as call:
            try:
                response = await self._respond(call, scope, receive)
            except Cancelled as error:
                calls.fail(error)
                return
            except ServingError as error:
                response = _failed(error)
            except Exception:
                logger.exception("%s failed", call.operation)
                response = _failed(ServingError("internal error; the server's log tells more"))
            await send_response(send, response)

    async def _respond(self, call: calls.Call, scope: Scope, receive: Receive) -> Response:
        route, names = self._route(scope["method"], scope["path"])
        call.operation = f"{route.method} {route.path}"
        calls.note(names.get("model", ""), names.get("version", ""))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._access.check(route.group, headers.get("authorization", ""))
        # A body of unknown length may become the largest.
        length = self._max_message_bytes if "transfer-encoding" in headers else int(headers.get("content-length", "0"))
        with self._inference.pending.spend(min(length, self._max_message_bytes)):
            return await self._answer(route, names, headers, scope["query_string"], receive)

    async def _answer(
        self, route: Route, names: Mapping[str, str], headers: Mapping[str, str], query: bytes, receive: Receive
    ) -> Response:
        body = await read_body(receive, headers, self._max_message_bytes)
        if headers.get("content-encoding", "identity") != "identity":
            body = await decompress(body, headers["content-encoding"], self._max_message_bytes)
        request = Request(names, headers, query, body)
        with cancelled_on_disconnect(receive):
            response = await route.handler(request)
            accepted = preferred_encoding(headers["accept-encoding"]) if "accept-encoding" in headers else None
            return await _compressed(response, accepted) if accepted and response.body else response

    def _route(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        allowed = []
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(path):
                if method == route.method:
                    return route, {name: value for name, value in match.groupdict().items() if value is not None}
                allowed.append(route.method)
        if allowed:
            raise MethodNotAllowed(*allowed)
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
        return _message(await self._inference.statistics(request.model, request.version))

    async def _openapi(self, _: Request) -> Response:
        return json_response(openapi.document())

    async def _infer(self, request: Request) -> Response:
        with self._inference.request(request.model, request.version) as counted:
            asked = self._parse(request, counted.served.model)
            body, json_length = http_tensors.serialize(asked, await self._inference.infer(counted, asked.request))
        if json_length is None:
            return Response(body)
        return Response(body, 200, "application/octet-stream", {HEADER_LENGTH: str(json_length)})

    def _parse(self, request: Request, model: ModelSignature) -> http_tensors.HttpInferRequest:
        header_length = request.headers.get(HEADER_LENGTH)
        if header_length == "0":
            return http_tensors.parse_raw(model, request.version, request.body)
        return http_tensors.parse(request.model, request.version, request.body, header_length, self._shared_memory)

    async def _predict(self, request: Request) -> Response:
        return _message(await self._images.predict(predict_request(request)))


def _failed(error: ServingError) -> Response:
    calls.fail(error)
    return error_response(error)


async def _compressed(response: Response, encoding: str) -> Response:
    headers = {**response.headers, "content-encoding": encoding, "vary": "accept-encoding"}
    return replace(response, body=await compress(response.body, encoding), headers=headers)


def _message(message: Message) -> Response:
    return json_response(to_json(message))
