"""How the client reaches a server: the typed image API over gRPC or HTTP, errors as `stn_serve.errors` on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import grpc
import orjson
import urllib3
from google.protobuf import json_format

from stn_serve import errors
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

_SENT_BY_SERVERS = (
    errors.InvalidRequest,
    errors.PayloadTooLarge,
    errors.NotFound,
    errors.Unsupported,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Cancelled,
)
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that is back should be found again within a second, not in two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_BY_GRPC_CODE = {error.grpc_code.value[0]: error for error in _SENT_BY_SERVERS}
_BY_HTTP_STATUS = {error.http_status: error for error in _SENT_BY_SERVERS}


class Transport(Protocol):
    """One connection to one server. Every call raises `ServingError`."""

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        ...

    def model_names(self, timeout_s: float) -> list[str]:
        """The models that are ready."""
        ...

    def close(self) -> None:
        """Drop the connection."""
        ...


def connect(address: str) -> Transport:
    """A transport for `host:port` (gRPC), `http://host:port` or `https://host:port`; nothing is sent yet.

    Raises:
        ValueError: another kind of address.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        return GrpcTransport(address)
    if scheme in ("http", "https"):
        return HttpTransport(address)
    raise ValueError(f"address {address!r}: expected host:port for gRPC, http://host:port or https://host:port")


def error_from_code(code: int, message: str) -> errors.ServingError:
    """The error that a gRPC status code stands for."""
    return _BY_GRPC_CODE.get(code, errors.ServingError)(message)


class GrpcTransport:
    """One channel; gRPC reconnects by itself."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = ImagePredictionStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """See `Transport`."""
        response: pb.PredictResponse = self._call(self._stub.Predict, request, timeout_s)
        return response

    def model_names(self, timeout_s: float) -> list[str]:
        """See `Transport`."""
        from tritonclient.grpc import service_pb2, service_pb2_grpc  # takes 0.4 s, and not every caller needs it

        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        statistics = self._call(stub.ModelStatistics, service_pb2.ModelStatisticsRequest(), timeout_s)
        return sorted({model.name for model in statistics.model_stats})

    def close(self) -> None:
        """See `Transport`."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: object, timeout_s: float) -> Any:  # noqa: ANN401 - the method's response
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._explain(error.code(), error.details() or "", timeout_s) from error

    def _explain(self, code: grpc.StatusCode, details: str, timeout_s: float) -> errors.ServingError:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(f"no answer from {self._address} within {timeout_s:g} s")
        if code is grpc.StatusCode.UNAVAILABLE and details.startswith(("failed to connect", "DNS resolution failed")):
            return _unreachable(self._address, "gRPC", details)
        if code is grpc.StatusCode.UNIMPLEMENTED and details in ("", "Method not found!"):
            return _without_typed_api(self._address)
        return error_from_code(code.value[0], details)


class HttpTransport:
    """A pool of connections that stay open between requests."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._pool = urllib3.PoolManager(retries=False)

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """See `Transport`."""
        version = f"/versions/{quote(request.model_version, safe='')}" if request.model_version else ""
        path = f"/v1/models/{quote(request.model_name, safe='')}{version}/predict"
        body = orjson.dumps(json_format.MessageToDict(request, preserving_proto_field_name=True))
        answer = self._call("POST", path, timeout_s, body)
        try:
            return json_format.ParseDict(answer, pb.PredictResponse(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise errors.ServingError(
                f"{self._address} answered with something else than predictions: {error}"
            ) from error

    def model_names(self, timeout_s: float) -> list[str]:
        """See `Transport`."""
        statistics = self._call("GET", "/v2/models/stats", timeout_s)
        return sorted({model["name"] for model in statistics["model_stats"]})

    def close(self) -> None:
        """See `Transport`."""
        self._pool.clear()

    def _call(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> dict[str, Any]:
        try:
            answer = self._pool.request(
                method,
                self._address + path,
                body=body,
                headers={"Content-Type": "application/json"} if body else None,
                timeout=urllib3.Timeout(total=timeout_s),
            )
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ProtocolError) as error:
            raise _unreachable(self._address, "HTTP", str(error)) from error
        except urllib3.exceptions.TimeoutError as error:  # a NewConnectionError is one, too
            raise errors.DeadlineExceeded(f"no answer from {self._address} within {timeout_s:g} s") from error
        except urllib3.exceptions.HTTPError as error:
            raise errors.Unavailable(f"{self._address}: {error}") from error
        document = _json_object(answer.data)
        if answer.status == 200 and document is not None:
            return document
        raise self._explain(answer.status, document)

    def _explain(self, status: int, document: dict[str, Any] | None) -> errors.ServingError:
        if document and "error" in document:
            message = str(document["error"])
        elif status == errors.NotFound.http_status:
            return _without_typed_api(self._address)
        else:
            message = f"{self._address} answered HTTP {status} without a reason"
        return _BY_HTTP_STATUS.get(status, errors.ServingError)(message)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _unreachable(address: str, protocol: str, reason: str) -> errors.Unavailable:
    return errors.Unavailable(
        f"no server answers at {address}: is `stn serve` running, and is this its {protocol} port? ({reason})"
    )


def _without_typed_api(address: str) -> errors.Unsupported:
    return errors.Unsupported(
        f"the server at {address} has no typed image API: ask `stn serve`, or use tritonclient and tensors"
    )
