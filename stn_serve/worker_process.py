"""A worker as its supervisor sees it: a child process, what it can be told, and what it last reported."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Self

from tritonclient.grpc import service_pb2

from stn_serve import exposition
from stn_serve.channel import Channel, Handler, Json
from stn_serve.errors import ConfigurationError, ServingError, Unavailable
from stn_serve.exposition import Family
from stn_serve.handover import door, hand_over
from stn_serve.setting_sources import to_document
from stn_serve.settings import ServerSettings

logger = logging.getLogger(__name__)

REPORT_S = 2.0
"""How long a worker may take to report before its last report is taken instead."""


class WorkerProcess:
    """Loaded when it is made."""

    def __init__(self, process: Process, channel: Channel, door_end: socket.socket) -> None:
        self._process = process
        self._channel = channel
        self._door = door_end
        self.connections = 0
        """At its last report, with those that it has been given since."""
        self.is_late = False
        """Whether it has not reported in time."""
        self.models: Sequence[Sequence[Json]] = ()
        """The rows of its table of models."""
        self.metrics: Sequence[Family] = ()
        """At its last report; so are the statistics."""
        self.statistics = service_pb2.ModelStatisticsResponse()

    @classmethod
    async def start(cls, settings: ServerSettings, handlers: Mapping[str, Handler], starting: set[Self]) -> Self:
        """Start one and let it load its models; meanwhile it is among `starting`.

        Raises:
            ConfigurationError: it cannot be started, cannot serve any, or ends.
        """
        try:
            worker = await cls._spawn(handlers)
        except OSError as error:
            raise ConfigurationError(f"a worker cannot be started: {error}") from error
        starting.add(worker)
        try:
            worker.models = await worker._channel.call("load", to_document(settings))
        except Unavailable as error:
            raise ConfigurationError(f"a worker ended with {await worker.ended()} while it started") from error
        except BaseException:
            worker.kill()
            raise
        finally:
            starting.discard(worker)
        return worker

    @classmethod
    async def _spawn(cls, handlers: Mapping[str, Handler]) -> Self:
        channel, their_channel = socket.socketpair()
        our_door, their_door = door()
        with their_channel, their_door:
            ends = [their_channel.fileno(), their_door.fileno()]
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "stn_serve.worker", *map(str, ends)),
                    pass_fds=ends,
                    stdin=asyncio.subprocess.DEVNULL,
                    # Ctrl-C is for the supervisor, which tells its workers.
                    start_new_session=True,
                )
            except OSError:
                channel.close()
                our_door.close()
                raise
        return cls(process, await Channel.over(channel, handlers), our_door)

    @property
    def id(self) -> int:
        """Of the process."""
        return self._process.pid

    async def open(self) -> None:
        """Let it take connections."""
        await self._channel.call("open")

    def take(self, protocol: str, connection: socket.socket) -> bool:
        """Give it a connection; whether it can take one."""
        is_taken = hand_over(self._door, protocol, connection)
        self.connections += is_taken
        return is_taken

    async def perform(self, operation: str, *arguments: Json) -> None:
        """Let it make a change.

        Raises:
            ServingError: it refuses, or has ended.
        """
        await self._channel.call("perform", operation, *arguments)

    async def report(self) -> None:
        """Let it report, if it can."""
        try:
            async with asyncio.timeout(REPORT_S):
                self._note(await self._channel.call("report"))
        except TimeoutError:
            self.is_late = True
        except Unavailable:
            return
        except ServingError as error:
            self.is_late = True
            logger.error("worker %d could not report: %s", self.id, error)  # noqa: TRY400 - it has logged its own

    async def stop(self, within_s: float) -> None:
        """Let it finish; what has not ended by then is killed."""
        try:
            async with asyncio.timeout(within_s):
                with contextlib.suppress(Unavailable):
                    self._note(await self._channel.call("stop"))
                await self._process.wait()
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> str:
        """Wait for its end; returns how it ended, in words."""
        code = await self._process.wait()
        self._channel.close()
        self._door.close()
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def _note(self, report: Json) -> None:
        self.is_late = False
        self.connections = report["connections"]
        self.metrics = exposition.load(report["metrics"].encode())
        self.statistics = service_pb2.ModelStatisticsResponse.FromString(b64decode(report["statistics"]))
