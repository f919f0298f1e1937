"""`grpc.health.v1.Health`: of the server, its services and its models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from stn_serve.grpc_context import Context
from stn_serve.inference import Inference

Status = int
"""A `HealthCheckResponse.ServingStatus`."""

SERVING: Status = HealthCheckResponse.SERVING
NOT_SERVING: Status = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Status = HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(HealthServicer):  # type: ignore[misc]  # the package has no types
    """Answers for the server (an empty name), for its services, and for models by their name."""

    def __init__(self, inference: Inference, services: Collection[str]) -> None:
        self._inference = inference
        self._services = frozenset(("", *services))

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The status now; NOT_FOUND for a name that is neither a service nor a model."""
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service or model '{request.service}'")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, _: Context) -> AsyncIterator[HealthCheckResponse]:
        """The status now and whenever it changes, until the server stops."""
        last: Status | None = None
        while True:
            changed = self._inference.registry.changed
            status = self._status(request.service)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            if self._inference.stopping.is_set():
                return
            await changed.wait()

    def _status(self, name: str) -> Status:
        if name in self._services:
            return SERVING if self._inference.server_ready() else NOT_SERVING
        if not self._inference.registry.knows(name):
            return SERVICE_UNKNOWN
        return SERVING if self._inference.server_ready() and self._inference.model_ready(name, "") else NOT_SERVING
