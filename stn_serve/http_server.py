"""uvicorn as a part of a larger process, with limits on what a connection may keep waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

KEEP_ALIVE_S = 75
"""How long a connection may idle: longer than the pauses of a client, so that it need not connect again."""


class Protocol(HttpToolsProtocol):
    """Closes a connection whose caller does not read its answer, or whose next request does not begin properly."""

    HEAD_TIMEOUT_S: ClassVar[float] = 30.0
    """From a connection's start, or the first byte of a request, to the end of its headers."""
    MAX_HEAD_BYTES: ClassVar[int] = 64 * 1024
    MAX_WAITING: ClassVar[int] = 64
    """Requests that a caller may send before it has the answers to those before them: each costs 2 KB."""
    READ_TIMEOUT_S: ClassVar[float] = 30.0
    """How long a caller may read nothing of an answer that waits for it in this process's memory."""
    REST_TIMEOUT_S: ClassVar[float] = 60.0
    """How long the rest of a request may take that has been answered already, such as one that was refused."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _read_timer: asyncio.TimerHandle | None = None
    _unread_bytes = 0
    _rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller has connected."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        self._head_complete()
        self._stop_read_timer()
        self._stop_rest_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a request has come."""
        super().data_received(data)
        if self._head_timer:
            self._head_bytes += len(data)
            if self._head_bytes > self.MAX_HEAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request has come."""
        if len(self.pipeline) >= self.MAX_WAITING:
            raise ValueError("too many requests wait for their answers")  # a parser's error: uvicorn hangs up
        super().on_message_begin()
        if not self._head_timer:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The headers of a request are whole."""
        self._head_complete()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._stop_rest_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been sent, perhaps before its request was whole."""
        if self.cycle.response_complete and self.cycle.more_body:
            self._rest_timer = self.loop.call_later(self.REST_TIMEOUT_S, self.transport.close)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The caller reads more slowly than it is answered."""
        super().pause_writing()
        self._await_read()

    def resume_writing(self) -> None:
        """The caller has read nearly all."""
        self._stop_read_timer()
        super().resume_writing()

    def _await_read(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(self.READ_TIMEOUT_S, self._check_read)

    def _check_read(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._await_read()
        else:
            self.transport.abort()  # closing would wait for the caller

    def _stop_read_timer(self) -> None:
        if self._read_timer:
            self._read_timer.cancel()
            self._read_timer = None

    def _stop_rest_timer(self) -> None:
        if self._rest_timer:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.HEAD_TIMEOUT_S, self.transport.close)

    def _head_complete(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None


class HttpServer(uvicorn.Server):
    """uvicorn as a part of a larger process: leaves signals alone, and takes connections that others have accepted."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        listener: socket.socket | None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """Serve an application.

        Args:
            app: An ASGI application.
            listener: A bound socket; without one, `adopt` gets the connections.
            context: Of TLS.
        """
        config = uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_context_factory=(lambda *_: context) if context else None,
        )
        super().__init__(config)
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own handlers."""
        yield

    async def start(self) -> None:
        """Return once connections are accepted."""
        self._serving = asyncio.create_task(self.serve([self._listener] if self._listener else []))
        while not self.started and not self._serving.done():
            await asyncio.sleep(0.001)

    async def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that has been accepted.

        Raises:
            OSError: the caller has gone, or TLS has failed.
        """
        if self.should_exit:
            connection.close()
            return
        await asyncio.get_running_loop().connect_accepted_socket(self._connect, connection, ssl=self.config.ssl)

    def _connect(self) -> Protocol:
        return Protocol(config=self.config, server_state=self.server_state, app_state={})

    @property
    def connections(self) -> int:
        """That callers hold open."""
        return len(self.server_state.connections)

    async def stop(self, grace_s: float) -> None:
        """Accept no more, and finish what is in flight."""
        # The annotation of uvicorn's asks for whole seconds, its code does not.
        self.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]
        self.should_exit = True
        if self._serving:
            await self._serving
