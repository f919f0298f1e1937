"""Callers that mean no good, or cannot do better: the server lives on and answers their neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
import urllib3
from served import Served

from stn_serve import http_messages
from stn_serve.errors import RequestTimeout
from stn_serve.http_messages import read_body
from stn_serve.http_server import HttpServer, Protocol

INFER = "/v2/models/ident/infer"
BODY = orjson.dumps(
    {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": list(range(784))}]}
)


def head(*lines: str, length: int | None = len(BODY)) -> bytes:
    announced = [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([f"POST {INFER} HTTP/1.1", "Host: x", *announced, *lines, "", ""]).encode()


def connect(served: Served) -> socket.socket:
    host, _, port = served.http.partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(connection: socket.socket) -> bytes:
    return connection.recv(65536)


@pytest.fixture(autouse=True)
def neighbour(server: Served) -> Iterator[None]:
    """After each test, the same process answers somebody else."""
    yield
    assert server.process.poll() is None
    assert urllib3.request("POST", f"http://{server.http}{INFER}", body=BODY, timeout=10).status == 200


def test_callers_that_stop_in_the_middle_do_not_hold_up_others(server: Served) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            for sent in (b"", b"POST /v2/mod", head()[:-2], head(), head() + BODY[:100]):
                stack.enter_context(connect(server)).sendall(sent)
        for _ in range(20):
            assert urllib3.request("POST", f"http://{server.http}{INFER}", body=BODY, timeout=10).status == 200


def test_a_body_that_comes_byte_by_byte_is_answered(server: Served) -> None:
    with connect(server) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head() + BODY[:200]:
            connection.sendall(bytes([byte]))
        connection.sendall(BODY[200:])
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


def test_a_body_in_chunks_of_one_byte_is_answered(server: Served) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head("Transfer-Encoding: chunked", length=None) + chunks)
        assert answer(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", head()[:40], head(), head() + BODY[:99], head() + BODY])
def test_a_connection_closed_for_sending_costs_nothing(server: Served, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[:12] in (b"", b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("Content-Length: 7"), b"400"),
        (head(length=None) + BODY, b"400"),
        (head("Inference-Header-Content-Length: 20") + BODY, b"400"),
        (head("Inference-Header-Content-Length: 99999999999999999999") + BODY, b"400"),
        (head("Inference-Header-Content-Length: -1") + BODY, b"400"),
        (head("Inference-Header-Content-Length: 1e3") + BODY, b"400"),
        (head(length=2**62), b"413"),
        (head("Content-Encoding: gzip") + BODY, b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    ],
)
def test_heads_that_lie_are_refused(server: Served, sent: bytes, status: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        assert answer(connection).split(b" ")[1] == status


def test_chunks_beyond_the_limit_are_refused_while_they_come(server: Served) -> None:
    with connect(server) as connection:
        connection.sendall(head("Transfer-Encoding: chunked", length=None))
        megabyte = b"100000\r\n" + bytes(2**20) + b"\r\n"
        sent = 0
        try:
            while sent < 200:
                connection.sendall(megabyte)
                sent += 1
        except OSError:  # it has hung up
            pass
        assert sent < 200


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_small_body_that_unpacks_to_gigabytes_takes_no_more_than_the_limit(server: Served) -> None:
    layer = gzip.compress(bytes(2**24), 9)
    bomb = gzip.compress(bytes(2**26 + 1), 9)
    before = resident_bytes(server.process.pid)
    for body in (bomb, layer):
        headers = {"Content-Encoding": "gzip"}
        response = urllib3.request("POST", f"http://{server.http}{INFER}", body=body, headers=headers)
        assert response.status == (413 if body is bomb else 400)
    assert resident_bytes(server.process.pid) - before < 400 * 2**20


@pytest.mark.parametrize(
    "document",
    [
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        BODY.replace(b"783", b"NaN"),
        BODY.replace(b"783", b"-Infinity"),
        BODY.replace(b"783", b"1e400"),
        BODY.replace(b"783", b"9" * 5000),
        BODY.replace(b"[1,1,28,28]", b"[9223372036854775807,9223372036854775807]"),
        BODY.replace(b"[1,1,28,28]", b"[18446744073709551616]"),
        BODY.replace(b"[1,1,28,28]", b"[" + b"1," * 5000 + b"1]"),
        BODY.replace(b"784", b"\xff\xfe"),
        b"\x00" * 1000,
    ],
)
def test_documents_that_hurt_are_refused(server: Served, document: bytes) -> None:
    response = urllib3.request("POST", f"http://{server.http}{INFER}", body=document)
    assert response.status == (200 if document == BODY else 400)
    assert len(response.data) < 100_000


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Protocol, "REST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Protocol, "MAX_HEAD_BYTES", 10_000)


async def app(_: MutableMapping[str, Any], __: object, send: Callable[..., Any]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def converse(*parts: bytes) -> bytes:
    """What a server answers to the parts of a request, until it hangs up."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = HttpServer(app, listener)
        await server.start()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.02)
            return await asyncio.wait_for(reader.read(), 10)
        except OSError:  # it may hang up while we send
            return b""
        finally:
            writer.close()
            await server.stop(1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("parts", "answers"),
    [
        ((), 0),
        ((b"GET / HTTP/1.1\r\nHost: x\r\n",), 0),
        ((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT"), 1),
        ((b"GET / HTTP/1.1\r\n", *([b"X: " + b"y" * 3000 + b"\r\n"] * 9)), 0),
        ((b"GET / HTTP/1.1\r\nX: ", *([b"y" * 3000] * 9)), 0),
    ],
)
def test_a_request_that_never_begins_properly_is_hung_up_on(parts: tuple[bytes, ...], answers: int) -> None:
    assert asyncio.run(converse(*parts)).count(b"200 OK") == answers


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("parts", "answers"),
    [
        ((b"half", b"?"), 1),
        ((b"half", b"past", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT"), 2),
    ],
)
def test_the_rest_of_a_request_that_has_been_answered_may_come_for_a_while(
    parts: tuple[bytes, ...], answers: int
) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n"
    assert asyncio.run(converse(head, *parts)).count(b"200 OK") == answers


def test_an_answer_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Protocol, "READ_TIMEOUT_S", 0.1)
    length = 64 * 2**20  # more than the sockets between them hold

    async def generous(_: MutableMapping[str, Any], __: object, send: Callable[..., Any]) -> None:
        headers = [(b"content-length", str(length).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(length)})

    async def received() -> int:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = HttpServer(generous, listener)
            await server.start()
            with socket.create_connection(listener.getsockname()) as deaf:
                deaf.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                while server.server_state.connections or not server.server_state.total_requests:
                    await asyncio.sleep(0.01)
                await server.stop(1)
                return await asyncio.to_thread(read_all, deaf)

    assert 0 < asyncio.run(asyncio.wait_for(received(), 20)) < length


def read_all(connection: socket.socket) -> int:
    """How many bytes there are to read until the end, or until the other side has cut the connection."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(2**20):
            count += len(data)
    return count


def test_a_caller_that_waits_for_no_answer_is_hung_up_on() -> None:
    answers = asyncio.run(converse(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000))
    assert answers.count(b"200 OK") <= Protocol.MAX_WAITING + 2


def test_a_body_that_pauses_for_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_messages, "BODY_TIMEOUT_S", 0.01)

    async def receive() -> MutableMapping[str, Any]:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    with pytest.raises(RequestTimeout, match=r"paused for more than 0.01 s"):
        asyncio.run(read_body(receive, {"content-length": "5"}, 100))
