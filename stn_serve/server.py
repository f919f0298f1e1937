"""A server of one process or of several, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import uvloop

from stn_serve.guard import Guard
from stn_serve.http_server import HttpServer
from stn_serve.limits import raise_open_files
from stn_serve.listening import Addresses, address, bind, host_port
from stn_serve.loading import IndexEntry
from stn_serve.malloc import keep_freed_memory
from stn_serve.metrics_api import MetricsApi
from stn_serve.model_server import ModelServer
from stn_serve.settings import ServerSettings

logger = logging.getLogger(__name__)

Row = tuple[str, str, bool, str]
"""Of the table of models: name, version, whether it is served, why not."""
Announce = Callable[[Sequence[Row], Addresses], None]


def run(settings: ServerSettings, announce: Announce) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight; a second signal ends at once.

    `announce` is called once the server is ready.

    Raises:
        ConfigurationError: a port is taken, or no model can be served.
    """
    prepare_process()
    uvloop.run(_serve(settings, announce))


def prepare_process() -> None:
    """What every process that serves begins with."""
    raise_open_files()
    keep_freed_memory()


async def _serve(settings: ServerSettings, announce: Announce) -> None:
    guard = Guard.of(settings)
    # Ports first: a taken one should not be found out after minutes of loading.
    with (
        bind(settings.host, settings.http_port) as http_socket,
        bind(settings.host, settings.metrics_port) as metrics_socket,
    ):
        with bind(settings.host, settings.grpc_port):
            server = await ModelServer.load(settings, guard)
        grpc_port = await server.open(http_socket, settings.grpc_port)
        metrics = HttpServer(
            MetricsApi(server.metrics.snapshot, guard.access), metrics_socket, settings.grace_s, guard.ssl_context
        )
        await metrics.start()
        addresses = Addresses(host_port(settings.host, grpc_port), address(http_socket), address(metrics_socket))
        stopped = stop_signal()
        if settings.ready_file:
            addresses.write(settings.ready_file)
        announce(rows(server.registry.index), addresses)
        async with in_background(server.watch()):
            await stopped
        await server.close()
        await metrics.stop()


def rows(index: Sequence[IndexEntry]) -> list[Row]:
    """The table of models."""
    return [(entry.name, str(entry.version or ""), entry.served is not None, entry.reason) for entry in index]


@contextlib.asynccontextmanager
async def in_background(work: Any) -> AsyncIterator[None]:  # noqa: ANN401 - a coroutine
    """Run it for the time of a `with`."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def stop_signal(last: Callable[[], None] = lambda: None) -> asyncio.Future[Any]:
    """Done at the first SIGTERM or SIGINT; the second calls `last` and ends the process."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[Any] = loop.create_future()

    def stop(number: int) -> None:
        if stopped.done():
            last()
            os._exit(128 + number)
        stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopped
