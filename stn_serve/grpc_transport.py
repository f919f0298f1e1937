"""The client's side of gRPC: one channel, which reconnects by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from stn_serve import errors
from stn_serve.addresses import Address
from stn_serve.failures import error_from_code, unreachable, without_api
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

InferMessage = Any
"""A message of tritonclient's, which has no types."""

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that is back should be found again within a second, not in two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class GrpcTransport:
    """See `transports.Transport`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._metadata = tuple(address.headers.items())
        if address.is_secure:
            self._channel = grpc.secure_channel(address.target, address.channel_credentials(), _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address.target, _CHANNEL_OPTIONS)
        self._stub = ImagePredictionStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        with _explained(self._address.text, timeout_s):
            response: pb.PredictResponse = self._stub.Predict(request, timeout=timeout_s, metadata=self._metadata)
        return response

    def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        with _explained(self._address.text, timeout_s):
            return _infer_stub(self._channel).ModelInfer(request, timeout=timeout_s, metadata=self._metadata)

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()


class AsyncGrpcTransport:
    """See `transports.AsyncTransport`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._metadata = tuple(address.headers.items())
        if address.is_secure:
            self._channel = grpc.aio.secure_channel(address.target, address.channel_credentials(), _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address.target, _CHANNEL_OPTIONS)
        self._stub = ImagePredictionStub(self._channel)  # type: ignore[no-untyped-call]  # generated

    async def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        with _explained(self._address.text, timeout_s):
            response: pb.PredictResponse = await self._stub.Predict(request, timeout=timeout_s, metadata=self._metadata)
        return response

    async def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        with _explained(self._address.text, timeout_s):
            return await _infer_stub(self._channel).ModelInfer(request, timeout=timeout_s, metadata=self._metadata)

    async def close(self) -> None:
        """Drop the connection."""
        await self._channel.close()


def _infer_stub(channel: grpc.Channel | grpc.aio.Channel) -> Any:  # noqa: ANN401 - tritonclient has no types
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub  # takes 0.4 s, and few callers need it

    return GRPCInferenceServiceStub(channel)


@contextmanager
def _explained(address: str, timeout_s: float) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _explain(error.code(), error.details() or "", address, timeout_s) from error


def _explain(code: grpc.StatusCode, details: str, address: str, timeout_s: float) -> errors.ServingError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded(f"no answer from {address} within {timeout_s:.3g} s")
    if code is grpc.StatusCode.UNAVAILABLE and details.startswith(("failed to connect", "DNS resolution failed")):
        return unreachable(address, "gRPC", details)
    if code is grpc.StatusCode.UNIMPLEMENTED and details in ("", "Method not found!"):
        return without_api(address)
    return error_from_code(code.value[0], details)
