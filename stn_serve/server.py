"""A server of one process or of several, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import uvloop

from stn_serve.connection_balancer import ConnectionBalancer
from stn_serve.guard import Guard
from stn_serve.http_server import HttpServer
from stn_serve.limits import raise_open_files
from stn_serve.listening import Addresses, address, bind
from stn_serve.loading import IndexEntry
from stn_serve.malloc import keep_freed_memory
from stn_serve.metrics_api import MetricsApi
from stn_serve.model_server import ModelServer
from stn_serve.settings import ServerSettings
from stn_serve.supervisor import Supervisor

Result = TypeVar("Result")

SWITCH_S = 0.0005
"""How long a thread that has computed may have to wait for the interpreter while the event loop has much to do. With
Python's 5 ms the next batch may begin so much later."""

LAST_SCRAPE_S = 1.0
"""What Prometheus gets to take its answer."""

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
    uvloop.run(_serve(settings, announce) if settings.workers == 1 else _supervise(settings, announce))


def prepare_process() -> None:
    """What every process that serves begins with."""
    raise_open_files()
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_S)
    # The garbage collector stops everything, and what has been imported is most of what it would look through: 40 ms of
    # every two seconds under overload. Models come later and are not exempt: they may go again.
    gc.collect()
    gc.freeze()


async def _serve(settings: ServerSettings, announce: Announce) -> None:
    guard = Guard.of(settings)
    guard.warn_of_strangers(settings.host)
    # Ports first: a taken one should not be found out after minutes of loading.
    with (
        bind(settings.host, settings.http_port) as http_socket,
        bind(settings.host, settings.grpc_port) as grpc_socket,
        bind(settings.host, settings.metrics_port) as metrics_socket,
    ):
        server = await ModelServer.load(settings, guard)
        await server.open(http_socket, grpc_socket)
        metrics = HttpServer(MetricsApi(server.metrics.snapshot, guard.access), metrics_socket, guard.ssl_context())
        await metrics.start()
        addresses = Addresses(address(grpc_socket), address(http_socket), address(metrics_socket))
        stopped = stop_signal()
        if settings.ready_file:
            addresses.write(settings.ready_file)
        announce(rows(server.registry.index), addresses)
        async with in_background(server.watch()):
            await stopped
        await server.close()
        await metrics.stop(LAST_SCRAPE_S)


async def _supervise(settings: ServerSettings, announce: Announce) -> None:
    guard = Guard.of(settings)
    guard.warn_of_strangers(settings.host)
    with (
        bind(settings.host, settings.http_port) as http_socket,
        bind(settings.host, settings.grpc_port) as grpc_socket,
        bind(settings.host, settings.metrics_port) as metrics_socket,
    ):
        supervisor = Supervisor(settings)
        balancer = ConnectionBalancer({"grpc": grpc_socket, "http": http_socket}, lambda: supervisor.workers)
        stopped = stop_signal(supervisor.kill)
        try:
            models = await _until(stopped, supervisor.start())
            if models is None:
                return
            balancer.listen()
            metrics = HttpServer(MetricsApi(supervisor.snapshot, guard.access), metrics_socket, guard.ssl_context())
            await metrics.start()
            addresses = Addresses(address(grpc_socket), address(http_socket), address(metrics_socket))
            if settings.ready_file:
                addresses.write(settings.ready_file)
            announce(models, addresses)
            async with in_background(balancer.run()):
                async with in_background(guard.watch()):
                    await _until(stopped, supervisor.supervise())
                await supervisor.stop()
            await metrics.stop(LAST_SCRAPE_S)
        finally:
            supervisor.kill()


async def _until(stopped: asyncio.Future[Any], work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` returns; None, with the work cancelled, if the signal comes first."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    return None


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
