"""A gRPC server with methods that echo, and peers that speak HTTP/2 to it by other libraries, or by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import uvloop
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, PingAckReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes

from stn_serve.arrivals import Arrivals
from stn_serve.budget import Budget
from stn_serve.grpc_context import Context
from stn_serve.grpc_server import GrpcServer
from stn_serve.listening import bind

MAX_MESSAGE = 2**20
MAX_PENDING = 8 * MAX_MESSAGE
Channel = Any
"""A `grpc.aio.Channel`; its stubs want a type of messages for each method."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""With empty settings."""


class Service:
    """Its methods take and give bytes."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.began = asyncio.Event()
        self.free = asyncio.Event()
        self.unread: list[Any] = []
        self.arrivals = Arrivals()
        """Messages of `echo` and `wait` that have begun."""

    async def echo(self, request: bytes, _: Context) -> bytes:
        return request

    async def wait(self, request: bytes, _: Context) -> bytes:
        self.began.set()
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return request

    async def fail(self, _: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.ABORTED, "50 % of ä\n is \u2603")

    async def crash(self, _: bytes, __: Context) -> bytes:
        raise ValueError("secret")

    async def tell(self, _: bytes, context: Context) -> bytes:
        return repr((sorted(context.invocation_metadata()), context.time_remaining() is not None)).encode()

    async def count(self, request: bytes, _: Context) -> AsyncIterator[bytes]:
        """As many messages as the first number says, of as many bytes as the second."""
        number, size = map(int, request.split())
        try:
            for each in range(number):
                yield each.to_bytes(4, "big") + bytes(size)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def join(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        return b"".join([request async for request in requests])

    async def converse(self, requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    async def ignore(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        """Reads nothing until it is told to."""
        self.began.set()
        await self.free.wait()
        return str(sum([len(request) async for request in requests])).encode()

    def server(self) -> GrpcServer:
        """One that offers it."""
        checks = dict.fromkeys(("/test/echo", "/test/wait"), lambda _, __: self.arrivals.expect())
        server = GrpcServer(MAX_MESSAGE, Budget(MAX_PENDING, "bytes of requests"), checks=checks)
        server.add_generic_rpc_handlers([self._handlers()])
        return server

    def _handlers(self) -> grpc.GenericRpcHandler:
        kinds: dict[str, Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
            **dict.fromkeys(("echo", "wait", "fail", "crash", "tell"), grpc.unary_unary_rpc_method_handler),
            "count": grpc.unary_stream_rpc_method_handler,
            "join": grpc.stream_unary_rpc_method_handler,
            "ignore": grpc.stream_unary_rpc_method_handler,
            "converse": grpc.stream_stream_rpc_method_handler,
        }
        methods = {name: kind(getattr(self, name), bytes, bytes) for name, kind in kinds.items()}
        return grpc.method_handlers_generic_handler("test", methods)


def connected(port: int) -> Channel:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Service, int]]:
    """A server for the time of a `with`, which answers to the end."""
    service = Service()
    server = service.server()
    with bind("127.0.0.1", 0) as listener:
        await server.start(listener)
        port = listener.getsockname()[1]
        try:
            yield service, port
            async with connected(port) as channel:
                assert await channel.unary_unary("/test/echo")(b"alive", timeout=20) == b"alive"
        finally:
            await server.stop(0)


def run(test: Callable[[Service, int], Awaitable[None]]) -> None:
    """A test against a server, on the loop that serves; it must end in good time, and no callback may fail."""
    failures: list[dict[str, Any]] = []

    async def within() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, failure: failures.append(failure))
        async with asyncio.timeout(30), serving() as (service, port):
            await test(service, port)

    uvloop.run(within())
    assert failures == []


def over_grpc(test: Callable[[Service, Channel], Coroutine[Any, Any, None]]) -> None:
    """The same with grpcio's client."""

    async def speak(service: Service, port: int) -> None:
        async with connected(port) as channel:
            await test(service, channel)

    run(speak)


HEADERS = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), ("content-type", "application/grpc")]


class Peer:
    """The client of the library `h2`, which keeps to the protocol and insists on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int = 65_535) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.flush()

    @classmethod
    async def connect(cls, port: int, window: int = 65_535) -> Peer:
        return cls(*await asyncio.open_connection("127.0.0.1", port), window)

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    def begin(self, method: str, *headers: tuple[str, str], service: str = "test") -> int:
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [*HEADERS[:2], (":path", f"/{service}/{method}"), *HEADERS[2:], *headers])
        self.flush()
        return stream

    async def events(self) -> list[Event]:
        data = await self._reader.read(65_536)
        if not data:
            raise ConnectionError
        events = self.h2.receive_data(data)
        self.flush()
        return events

    async def send(self, stream: int, data: bytes, end: bool = True) -> None:
        """As the server's window allows."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room:
                self.h2.send_data(stream, data[:room])
                data = data[room:]
                self.flush()
            else:
                await self.events()
        if end:
            self.h2.end_stream(stream)
            self.flush()

    async def taken(self) -> None:
        """Wait until the server has taken all that was sent."""
        self.h2.ping(bytes(8))
        self.flush()
        while not any(isinstance(event, PingAckReceived) for event in await self.events()):
            pass

    async def answer(self, stream: int, credit: int | None = None) -> tuple[dict[str, str], bytes, int]:
        """Headers and trailers, data, and in how many frames that came; `credit` is given for each."""
        headers: dict[str, str] = {}
        data, count = b"", 0
        while True:
            for event in await self.events():
                if getattr(event, "stream_id", stream) != stream:
                    continue
                if isinstance(event, ResponseReceived | TrailersReceived):
                    headers |= {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    data, count = data + event.data, count + 1
                    self.h2.increment_flow_control_window(event.flow_controlled_length)
                    if credit != 0:
                        with suppress(StreamClosedError):
                            self.h2.increment_flow_control_window(credit or event.flow_controlled_length, stream)
                    self.flush()
                elif isinstance(event, StreamEnded):
                    return headers, data, count
                elif isinstance(event, StreamReset):
                    raise ConnectionResetError(event.error_code)

    async def close(self) -> None:
        await hang_up(self._writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data
