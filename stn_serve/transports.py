"""How a client reaches a server: messages over gRPC or HTTP. Every call raises `ServingError`."""

from __future__ import annotations

from typing import Any, Protocol

from stn_serve.addresses import Address
from stn_serve.grpc_transport import AsyncGrpcTransport, GrpcTransport
from stn_serve.http_transport import AsyncHttpTransport, HttpTransport
from stn_serve.proto import image_prediction_pb2 as pb

InferMessage = Any
"""`ModelInferRequest` or `ModelInferResponse` of tritonclient, which has no types; tensors are in the raw contents."""


class Transport(Protocol):
    """Connections to one server; threads may share it."""

    def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        ...

    def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        ...

    def close(self) -> None:
        """Drop the connections."""
        ...


class AsyncTransport(Protocol):
    """The same for one event loop."""

    async def predict(self, request: pb.PredictRequest, timeout_s: float) -> pb.PredictResponse:
        """Send images, return an outcome for each."""
        ...

    async def infer(self, request: InferMessage, timeout_s: float) -> InferMessage:
        """Send tensors, return tensors."""
        ...

    async def close(self) -> None:
        """Drop the connections."""
        ...


def connect(address: Address) -> Transport:
    """A transport for an address; nothing is sent yet."""
    return HttpTransport(address) if address.is_http else GrpcTransport(address)


def connect_async(address: Address) -> AsyncTransport:
    """The same for asyncio; to be called where the loop runs."""
    return AsyncHttpTransport(address) if address.is_http else AsyncGrpcTransport(address)
