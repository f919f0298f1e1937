"""What one process serves: the models of a repository behind gRPC and HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Self

from stn_serve import calls
from stn_serve.catalogue import Catalogue
from stn_serve.control import Control
from stn_serve.gateway_catalogue import GatewayCatalogue
from stn_serve.grpc_api import create_server
from stn_serve.grpc_server import GrpcServer
from stn_serve.guard import Guard
from stn_serve.http_api import HttpApi
from stn_serve.http_server import HttpServer
from stn_serve.images import ImageLimits
from stn_serve.inference import Inference
from stn_serve.limits import available_memory_bytes
from stn_serve.log_settings import LogSettings
from stn_serve.metrics import Metrics
from stn_serve.polling import poll
from stn_serve.registry import ModelRegistry
from stn_serve.settings import ServerSettings
from stn_serve.shared_memory import SharedMemory
from stn_serve.tracing import Tracing
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

ABANDON_AFTER_S = 1.0
"""How long answers may still be on their way, and batches run that nobody waits for, after the grace time."""
PENDING_SHARE = 4
"""What part of the memory requests in work may take: tensors and images are larger once they are decoded."""
LINGER_S = 0.25
"""How long callers are refused before the ports are closed: a gRPC server that shuts down cancels calls that have just
reached it, which tells their callers less than UNAVAILABLE does."""


class ModelServer:
    """Loaded when it is made, reachable between `open` and `close`."""

    def __init__(self, settings: ServerSettings, registry: Catalogue, guard: Guard) -> None:
        self.registry = registry
        self.inference = Inference(registry, settings.max_pending_bytes or available_memory_bytes() // PENDING_SHARE)
        self.control = Control(
            registry, SharedMemory(settings.allow_shared_memory), LogSettings(), settings.allow_log_settings
        )
        self.control.logs.install()
        self.metrics = Metrics(registry)
        self._tracing = Tracing.start() if settings.tracing else None
        calls.trace_with(self._tracing.record if self._tracing else None)
        self._settings = settings
        self._guard = guard
        self._images = ImagePrediction(
            registry, ImageLimits(max_bytes=settings.max_message_bytes, max_pixels=settings.max_image_pixels)
        )
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None

    @classmethod
    async def load(cls, settings: ServerSettings, guard: Guard) -> Self:
        """Load and warm up the models, or find out which ones Triton has.

        Raises:
            ConfigurationError: none can be served.
        """
        if settings.engine == "triton":
            return cls(settings, await GatewayCatalogue.start(settings), guard)
        registry = await asyncio.to_thread(
            ModelRegistry.load,
            settings.model_repository,
            settings.model_control_mode,
            settings.startup_models,
            settings.prediction_metrics,
        )
        return cls(settings, registry, guard)

    async def open(self, http_socket: socket.socket | None = None, grpc_socket: socket.socket | None = None) -> None:
        """Listen on bound sockets; without them, serve what `adopt` gets."""
        guard = self._guard
        surface = (self.inference, self.control, self._images, self._settings.max_message_bytes, guard.access)
        self._grpc = create_server(*surface)
        self._http = HttpServer(HttpApi(*surface), http_socket, guard.ssl_context())
        await asyncio.gather(self._grpc.start(grpc_socket, guard.ssl_context("h2")), self._http.start())

    async def adopt(self, protocol: str, connection: socket.socket) -> None:
        """Serve a connection that another process has accepted.

        Raises:
            OSError: the caller has gone, or TLS has failed.
        """
        server = {"grpc": self._grpc, "http": self._http}[protocol]
        if server:
            await server.adopt(connection)

    @property
    def connections(self) -> int:
        """That callers hold open."""
        return sum(server.connections for server in (self._grpc, self._http) if server)

    async def watch(self) -> None:
        """Follow the files of the guard, and the repository where that is asked for, for ever."""
        settings = self._settings
        following = [self._guard.watch()]
        if settings.model_control_mode == "poll" and isinstance(self.registry, ModelRegistry):
            following.append(poll(self.registry, settings.model_repository, settings.repository_poll_secs))
        await asyncio.gather(*following)

    async def close(self) -> None:
        """Be not ready, accept no more, and finish what is in flight, in the grace time.

        Ends the process if a model still computes then: no thread can be made to stop, and to free a session under it
        would crash.
        """
        settings = self._settings
        self.inference.withdraw()
        if settings.drain_s:
            logger.info("stopping: not ready any more, closing the ports in %g s", settings.drain_s)
            await asyncio.sleep(settings.drain_s)
        logger.info("stopping: finishing the requests in flight, for at most %g s", settings.grace_s)
        end = time.monotonic() + settings.grace_s
        self.inference.stop()
        await self.registry.finish(settings.grace_s)
        # Whoever waits for a model that hangs is told now.
        await self.registry.close(ABANDON_AFTER_S)
        await asyncio.sleep(LINGER_S)
        if self._grpc and self._http:
            left_s = max(end - time.monotonic(), ABANDON_AFTER_S)
            await asyncio.gather(self._grpc.stop(left_s), self._http.stop(left_s))
        self._images.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.stop)
        if self.registry.computing:
            logger.error("a model still computes: the process ends without it")
            logging.shutdown()
            os._exit(0)
