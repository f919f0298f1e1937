"""A gRPC server on asyncio, over our own HTTP/2: `grpc.aio.server` costs every call several times as much."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import grpc

from stn_serve.budget import Budget
from stn_serve.grpc_calls import Call, Check, Handler
from stn_serve.grpc_head import Head, not_grpc, only_trailers, read_head, trailers
from stn_serve.h2_connection import Connection
from stn_serve.h2_stream import NOBODY, Receiver, Stream
from stn_serve.listening import BACKLOG

RESERVED_MESSAGES = 2
"""Messages of the largest size that one caller may send at the same time."""
ABANDON_AFTER_S = 0.5
"""How long a connection may take to close once its calls have been given up."""

Admit = Callable[[Head], Handler | None]
"""Who answers in the place of a method, before the call is read; None to let it pass."""


class GrpcServer:
    """Where generated code adds its services; their methods are coroutines, or generators of answers.

    Calls whose callers have gone, or have no time left, are cancelled. Answers are not compressed, requests may be.
    """

    def __init__(
        self,
        max_message_bytes: int,
        pending: Budget,
        admit: Admit = lambda _: None,
        checks: Mapping[str, Check] = MappingProxyType({}),
    ) -> None:
        """Serve nothing yet.

        Args:
            max_message_bytes: Of a request.
            pending: What requests may hold in memory together until they are whole.
            admit: Asked before a call is read.
            checks: Asked when a message begins, by the path of a method.
        """
        self._max_message_bytes = max_message_bytes
        self._pending = pending
        self._admit = admit
        self._checks = checks
        self._services: list[grpc.GenericRpcHandler] = []
        self._methods: dict[str, Handler] = {}
        self._listening: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None
        self._connections: set[Connection[Head]] = set()
        self._all_closed = asyncio.Event()
        self._is_stopping = False

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add services."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """Add nothing: generated code registers each method a second time."""

    async def start(self, listener: socket.socket | None, context: ssl.SSLContext | None = None) -> None:
        """Accept connections on a bound socket; without one, serve what `adopt` gets."""
        self._context = context
        if listener:
            loop = asyncio.get_running_loop()
            self._listening = await loop.create_server(self._connect, sock=listener, ssl=context, backlog=BACKLOG)

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that has been accepted.

        Raises:
            OSError: the caller has gone, or TLS has failed.
        """
        await asyncio.get_running_loop().connect_accepted_socket(self._connect, connection, ssl=self._context)

    @property
    def connections(self) -> int:
        """That callers hold open."""
        return len(self._connections)

    async def stop(self, grace_s: float) -> None:
        """Accept no more, finish what is in flight in the grace time, and hang up."""
        self._is_stopping = True
        if self._listening:
            self._listening.close()
        for connection in list(self._connections):
            connection.leave()
        await self._closed_within(grace_s)
        for connection in list(self._connections):
            connection.close()
        await self._closed_within(ABANDON_AFTER_S)
        for connection in list(self._connections):
            connection.abort()

    async def _closed_within(self, time_s: float) -> None:
        self._all_closed.clear()
        if self._connections:
            try:
                await asyncio.wait_for(self._all_closed.wait(), time_s)
            except TimeoutError:
                return

    def _connect(self) -> Connection[Head]:
        reserved = RESERVED_MESSAGES * self._max_message_bytes
        return Connection(read_head, self._accept, self._began, self._ended, reserved)

    def _began(self, connection: Connection[Head]) -> None:
        self._connections.add(connection)
        if self._is_stopping:
            connection.leave()

    def _ended(self, connection: Connection[Head]) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def _accept(self, stream: Stream, head: Head) -> Receiver:
        if head.http_status != 200:
            stream.end(not_grpc(head.http_status))
            return NOBODY
        if head.error:
            stream.end(only_trailers(trailers(*head.error)))
            return NOBODY
        handler = self._admit(head) or self._find(head)
        if handler is None:
            stream.end(only_trailers(trailers(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")))
            return NOBODY
        return Call(stream, head, handler, self._max_message_bytes, self._pending, self._checks.get(head.method))

    def _find(self, head: Head) -> Handler | None:
        found = self._methods.get(head.method)
        if found is None:
            for service in self._services:
                found = service.service(head)  # type: ignore[arg-type]  # it is one, with tuples as metadata
                if found:
                    self._methods[head.method] = found
                    break
        return found
