"""Calls between the processes of one server: both ends of a socket pair may call the other, in lines of JSON."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import orjson

from stn_serve import errors
from stn_serve.errors import ServingError, Unavailable

logger = logging.getLogger(__name__)

Json = Any
Handler = Callable[..., Awaitable[Json]]

MAX_LINE_BYTES = 256 * 2**20
"""Far more than the metrics of any number of models."""


class Channel:
    """One end. `handlers` answer what the other end calls; their `ServingError`s are raised there."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: Mapping[str, Handler]
    ) -> None:
        self._writer = writer
        self._handlers = handlers
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Json]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.closed: asyncio.Task[None] = asyncio.create_task(self._read(reader))
        """Done when the other end has gone."""

    @classmethod
    async def over(cls, end: socket.socket, handlers: Mapping[str, Handler]) -> Self:
        """Speak over one socket of a pair, which belongs to the channel from now on."""
        reader, writer = await asyncio.open_connection(sock=end, limit=MAX_LINE_BYTES)
        return cls(reader, writer, handlers)

    async def call(self, name: str, *arguments: Json) -> Json:
        """What the other end's handler returns.

        Raises:
            Unavailable: the other end has gone, or goes before it answers.
            ServingError: what the handler raises.
        """
        if self.closed.done():
            raise _gone()
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"number": number, "call": name, "arguments": arguments})
            return await answer
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._receive(orjson.loads(line))
        except (ConnectionError, ValueError):
            logger.debug("a channel has broken off", exc_info=True)
        finally:
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(_gone())

    def _receive(self, message: dict[str, Json]) -> None:
        if "call" in message:
            task = asyncio.create_task(self._answer(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        answer = self._waiting.get(message["number"])
        if answer is None or answer.done():
            return  # its caller has stopped waiting
        if "error" in message:
            answer.set_exception(_error(message["error"], message["text"]))
        else:
            answer.set_result(message["result"])

    async def _answer(self, message: dict[str, Json]) -> None:
        number = {"number": message["number"]}
        try:
            result = await self._handlers[message["call"]](*message["arguments"])
        except ServingError as error:
            self._send({**number, "error": type(error).__name__, "text": str(error)})
        except Exception:
            logger.exception("%s failed", message["call"])
            self._send({**number, "error": "ServingError", "text": "internal error; the server's log tells more"})
        else:
            self._send({**number, "result": result})

    def _send(self, message: dict[str, Json]) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")


def _gone() -> Unavailable:
    return Unavailable("the process that was asked has ended")


def _error(name: str, text: str) -> ServingError:
    kind = getattr(errors, name, ServingError)
    return kind(text) if issubclass(kind, ServingError) and kind is not errors.MethodNotAllowed else ServingError(text)
