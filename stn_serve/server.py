"""One process, one event loop: gRPC, HTTP and metrics over the models of a repository."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from stn_serve.control import Control
from stn_serve.errors import ConfigurationError
from stn_serve.grpc_api import create_server
from stn_serve.http_api import HttpApi
from stn_serve.http_server import HttpServer
from stn_serve.images import ImageLimits
from stn_serve.inference import Inference
from stn_serve.log_settings import LogSettings
from stn_serve.metrics import Metrics
from stn_serve.metrics_api import MetricsApi
from stn_serve.polling import poll
from stn_serve.registry import ModelRegistry
from stn_serve.settings import ServerSettings
from stn_serve.shared_memory import SharedMemory
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server listens, each as `host:port`."""

    grpc: str
    http: str
    metrics: str

    def write(self, path: Path) -> None:
        """Write them as JSON, at once and whole: who waits for the file may read it as soon as it is there."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)


ABANDON_AFTER_S = 1.0
"""How long batches may still run whose callers have been answered or have gone."""

Announce = Callable[[ModelRegistry, Addresses], None]


def run(settings: ServerSettings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight; a second signal ends at once.

    `announce` is called once the server is ready.

    Raises:
        ConfigurationError: a port is taken, or no model can be served.
    """
    uvloop.run(_serve(settings, announce))


async def _serve(settings: ServerSettings, announce: Announce) -> None:
    # Ports first: a taken one should not be found out after minutes of loading.
    with (
        _listen(settings.host, settings.http_port) as http_socket,
        _listen(settings.host, settings.metrics_port) as metrics_socket,
    ):
        with _listen(settings.host, settings.grpc_port):
            registry = await asyncio.to_thread(
                ModelRegistry.load,
                settings.model_repository,
                settings.model_control_mode,
                settings.startup_models,
            )
        inference = Inference(registry)
        control = Control(registry, SharedMemory(settings.allow_shared_memory), LogSettings())
        control.logs.install()
        images = ImagePrediction(
            registry, ImageLimits(max_bytes=settings.max_message_bytes, max_pixels=settings.max_image_pixels)
        )
        grpc_server = create_server(inference, control, images, settings.max_message_bytes)
        grpc_port = grpc_server.add_insecure_port(_host_port(settings.host, settings.grpc_port))
        http = HttpServer(
            HttpApi(inference, control, images, settings.max_message_bytes), http_socket, settings.grace_s
        )
        metrics = HttpServer(MetricsApi(Metrics(registry).snapshot), metrics_socket, settings.grace_s)
        await asyncio.gather(grpc_server.start(), http.start(), metrics.start())

        addresses = Addresses(_host_port(settings.host, grpc_port), _address(http_socket), _address(metrics_socket))
        stopped = _stop_signal()
        if settings.ready_file:
            addresses.write(settings.ready_file)
        announce(registry, addresses)
        with _polling(registry, settings):
            await stopped

        logger.info("stopping: finishing the requests in flight, for at most %g s", settings.grace_s)
        inference.stop()
        await asyncio.gather(grpc_server.stop(settings.grace_s), http.stop())
        await metrics.stop()
        await registry.close(ABANDON_AFTER_S)
        images.close()


@contextmanager
def _polling(registry: ModelRegistry, settings: ServerSettings) -> Iterator[None]:
    """Follow the changes of the repository for the time of a `with`, where that is asked for."""
    if settings.model_control_mode != "poll":
        yield
        return
    task = asyncio.create_task(poll(registry, settings.model_repository, settings.repository_poll_secs))
    try:
        yield
    finally:
        task.cancel()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; a port of 0 takes a free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"cannot listen on port {port} of {host}: {reason}") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return _host_port(host, port)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _stop_signal() -> asyncio.Future[Any]:
    """Done at the first SIGTERM or SIGINT; the second ends the process."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[Any] = loop.create_future()

    def stop(number: int) -> None:
        if stopped.done():
            os._exit(128 + number)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopped
