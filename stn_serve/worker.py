"""A worker: one of several processes that serve the same models. `python -m stn_serve.worker FD DOOR`.

Its supervisor tells it over the socket pair FD what to do: load, take connections, change, report, stop.
Connections come over the socket pair DOOR. When the supervisor is gone, or on SIGTERM, it stops as well.
"""

from __future__ import annotations

# ruff: noqa: E402 - threads that libraries start when they are imported would have heaps of their own
from stn_serve.malloc import use_one_heap

use_one_heap()

import asyncio
import contextlib
import socket
import sys
from base64 import b64decode, b64encode
from typing import Any

import uvloop
from tritonclient.grpc import service_pb2

from stn_serve import exposition, logs
from stn_serve.channel import Channel, Handler, Json
from stn_serve.guard import Guard
from stn_serve.handover import Doorway
from stn_serve.limits import share_among
from stn_serve.model_server import ModelServer
from stn_serve.server import in_background, prepare_process, rows, stop_signal
from stn_serve.setting_sources import from_document


class Worker:
    """Answers the supervisor's calls."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self.stopping = asyncio.Event()
        self._channel: Channel
        self._server: ModelServer
        self._open = contextlib.AsyncExitStack()
        """What is to be closed again."""
        self._closing: asyncio.Task[None] | None = None

    async def serve(self, end: socket.socket) -> None:
        """Do as the supervisor says, until it is enough."""
        calls: dict[str, Handler] = {
            "load": self._load,
            "open": self._take_connections,
            "perform": self._perform,
            "report": self._report,
            "stop": self._stop,
        }
        self._channel = await Channel.over(end, calls)
        enough = [stop_signal(), asyncio.ensure_future(self.stopping.wait()), self._channel.closed]
        await asyncio.wait(enough, return_when=asyncio.FIRST_COMPLETED)
        await self._close()
        self._channel.close()

    async def _load(self, document: Json) -> Json:
        """Load the models; returns the rows of their table."""
        settings = from_document(document)
        logs.configure(settings.log_level, settings.log_format)
        share_among(settings.workers)
        self._server = await ModelServer.load(settings, Guard.of(settings))
        self._server.control.spread = self._spread
        self._server.inference.total_statistics = self._total_statistics
        return rows(self._server.registry.index)

    async def _take_connections(self) -> None:
        """Serve those that the supervisor hands over, until the server has closed."""
        await self._server.open()
        self._open.enter_context(Doorway(self._door, self._server.adopt))
        self._open.push_async_callback(self._server.close)
        await self._open.enter_async_context(in_background(self._server.watch()))

    async def _perform(self, operation: str, *arguments: Json) -> None:
        await self._server.control.perform(operation, *arguments)

    async def _report(self) -> Json:
        """What this process has counted."""
        statistics = self._server.inference.model_statistics("", "")
        return {
            "metrics": exposition.dump(await self._server.metrics.snapshot()).decode(),
            "statistics": b64encode(statistics.SerializeToString()).decode(),
            "connections": self._server.connections,
        }

    async def _stop(self) -> Json:
        """Finish what is in flight; returns the last report."""
        await self._close()
        report = await self._report()
        # After the answer has been sent.
        asyncio.get_running_loop().call_later(0.05, self.stopping.set)
        return report

    async def _close(self) -> None:
        # A signal may come together with the supervisor's call, as systemd sends it to all processes of a service.
        if self._closing is None:
            self._closing = asyncio.create_task(self._open.aclose())
        await asyncio.shield(self._closing)

    async def _spread(self, operation: str, *arguments: Any) -> None:  # noqa: ANN401 - JSON
        """A client wants a change: every worker makes it."""
        await self._channel.call("spread", operation, *arguments)

    async def _total_statistics(self) -> service_pb2.ModelStatisticsResponse:
        return service_pb2.ModelStatisticsResponse.FromString(b64decode(await self._channel.call("statistics")))


def main() -> None:
    """Serve until told to stop."""
    prepare_process()
    channel, door = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    uvloop.run(Worker(door).serve(channel))


if __name__ == "__main__":
    main()
