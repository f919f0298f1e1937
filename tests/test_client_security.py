from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import numpy as np
import pytest
from self_signed import make_certificate
from served import Served

from stn_serve import AsyncClient, Client
from stn_serve.addresses import Address
from stn_serve.errors import Unauthenticated, Unavailable
from stn_serve.proto.image_prediction_pb2 import PredictRequest, PredictResponse
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionServicer, add_ImagePredictionServicer_to_server

WHITE = np.full((20, 40), 255, np.uint8)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "server")


@contextmanager
def behind_tls(plain: str, cert: Path, key: Path, client_ca: Path | None = None) -> Iterator[str]:
    """A proxy that speaks TLS for a plain server, as one stands before servers in the field; yields its `host:port`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=client_ca)
    context.verify_mode = ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = plain.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, upstream_writer), pump(upstream_reader, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # refused handshakes are what the tests are about
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(connect, "127.0.0.1", 0, ssl=context), loop).result()
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plain_address(served: Served, protocol: str) -> str:
    return served.grpc if protocol == "grpc" else served.http


def scheme(protocol: str) -> str:
    return "grpcs" if protocol == "grpc" else "https"


def test_tls_with_a_certificate_to_trust(vision_server: Served, certificate: tuple[Path, Path], protocol: str) -> None:
    cert, key = certificate

    async def ask(address: str) -> str:
        async with AsyncClient(address, ca=cert) as stn:
            return (await stn.predict(WHITE)).label

    with behind_tls(plain_address(vision_server, protocol), cert, key) as proxy:
        address = f"{scheme(protocol)}://{proxy}"
        with Client(address, ca=cert) as stn:
            assert stn.predict(WHITE).label == "bright"
            assert stn.infer("vision", {"image": np.zeros((1, 8, 8, 1), np.uint8)}, outputs=["logits"])
        assert asyncio.run(ask(address)) == "bright"
        with Client(address, retries=0) as stn, pytest.raises(Unavailable, match=f"no server answers at {address}"):
            stn.predict(WHITE)


def test_tls_where_the_server_wants_to_know_its_clients(
    vision_server: Served, certificate: tuple[Path, Path], protocol: str
) -> None:
    cert, key = certificate
    with behind_tls(plain_address(vision_server, protocol), cert, key, client_ca=cert) as proxy:
        address = f"{scheme(protocol)}://{proxy}"
        with Client(address, ca=cert, cert=cert, key=key) as stn:
            assert stn.predict(WHITE).label == "bright"
        with Client(address, ca=cert, retries=0) as stn, pytest.raises(Unavailable):
            stn.predict(WHITE)


class Guard(ImagePredictionServicer):
    """Lets in who knows the word."""

    def Predict(self, request: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:
        if ("authorization", "Bearer open sesame") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        return PredictResponse(model_name=request.model_name, results=[{"prediction": {"classes": [{"label": "in"}]}}])


@contextmanager
def guarded_grpc() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_ImagePredictionServicer_to_server(Guard(), server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def guarded_http() -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            known = self.headers["authorization"] == "Bearer open sesame"
            welcome = b'{"results":[{"prediction":{"classes":[{"label":"in"}]}}]}'
            body = welcome if known else b'{"error":"who are you?"}'
            self.send_response(200 if known else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_token_opens(protocol: str) -> None:
    with guarded_grpc() if protocol == "grpc" else guarded_http() as address:
        with Client(address, token="open sesame") as stn:
            assert stn.predict(WHITE).label == "in"
        for token in ("open barley", ""):
            with Client(address, token=token) as stn, pytest.raises(Unauthenticated, match="who are you"):
                stn.predict(WHITE)


def test_files_make_a_plain_address_secure(certificate: tuple[Path, Path]) -> None:
    assert Address.parse("host:1", ca=certificate[0]).is_secure
    assert not Address.parse("host:1", token="word").is_secure
    assert Address.parse("grpcs://host:1").target == "host:1"
    assert Address.parse("https://host:1/").target == "https://host:1"


def test_what_contradicts_itself(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    with pytest.raises(ValueError, match="'http://host:1' is without TLS, but ca, cert or key is given: use https://"):
        Client("http://host:1", ca=cert)
    with pytest.raises(ValueError, match="cert and key belong together"):
        Client("host:1", key=key)
    for address in ("host:1", "https://host:1"):
        with pytest.raises(ValueError, match=r"certificates of .*host:1 cannot be used"):
            Client(address, ca=tmp_path / "missing.pem")
    with pytest.raises(ValueError, match="no header can carry"):
        Client("host:1", token="a\nb")
