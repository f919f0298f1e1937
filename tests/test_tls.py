from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx_models import publish_vision
from self_signed import make_certificate
from served import Served, run_stn, start, stop

from stn_serve import AsyncClient, Client
from stn_serve.errors import Unavailable
from stn_serve.image_sources import encode
from stn_serve.live_files import INTERVAL_S

WHITE = np.full((20, 40), 255, np.uint8)


class Secure:
    """A server with mutual TLS, whose files may be exchanged."""

    def __init__(self, directory: Path) -> None:
        self.first, self.second = (make_certificate(directory, name) for name in ("first", "second"))
        self.client = make_certificate(directory, "client")
        self.cert, self.key, self.ca = directory / "cert.pem", directory / "key.pem", directory / "ca.pem"
        self.ca.write_bytes(self.client[0].read_bytes())
        self.use(*self.first)
        self.repository = directory / "models"
        publish_vision(self.repository)
        self.files = ("--tls-cert", str(self.cert), "--tls-key", str(self.key), "--tls-client-ca", str(self.ca))
        self.served: Served = start(self.repository, *self.files)

    def use(self, cert: Path, key: Path) -> None:
        self.cert.write_bytes(cert.read_bytes())
        self.key.write_bytes(key.read_bytes())

    def addresses(self) -> tuple[str, str]:
        return f"grpcs://{self.served.grpc}", f"https://{self.served.http}"

    def ask(self, address: str, ca: Path) -> str:
        with Client(address, ca=ca, cert=self.client[0], key=self.client[1], retries=0, timeout_s=20) as stn:
            return stn.predict(WHITE).label


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Secure]:
    secure = Secure(tmp_path)
    yield secure
    if secure.served.process.poll() is None:
        stop(secure.served)


def test_the_command_brings_its_certificates(secure: Secure, tmp_path: Path) -> None:
    image = tmp_path / "white.png"
    image.write_bytes(encode(WHITE))
    cert, key = secure.client
    for address in secure.addresses():
        files = ("--ca", secure.first[0], "--cert", cert, "--key", key)
        asked = run_stn("predict", str(image), "--url", address, *map(str, files))
        assert "bright" in asked.stdout, asked.stderr


def test_all_three_ports_speak_tls_to_those_they_know(secure: Secure) -> None:
    for address in secure.addresses():
        assert secure.ask(address, secure.first[0]) == "bright"
        with Client(address, ca=secure.first[0], retries=0) as stranger, pytest.raises(Unavailable):
            stranger.predict(WHITE)
    context = ssl.create_default_context(cafile=secure.first[0])
    context.load_cert_chain(*secure.client)
    metrics = f"https://{secure.served.metrics}/metrics"
    assert "nv_inference_count" in httpx.get(metrics, verify=context).text
    with pytest.raises(httpx.HTTPError):
        httpx.get(metrics, verify=ssl.create_default_context(cafile=secure.first[0]))
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{secure.served.http}/v2/health/ready")
    code, output = stop(secure.served)
    assert code == 0, output
    assert f"https://{secure.served.http}" in output


async def ask_while(secure: Secure, done: asyncio.Event) -> int:
    """Predictions over one connection of each protocol that stays open; none may fail."""
    count = 0
    grpc_address, http_address = secure.addresses()
    mine = {"ca": secure.first[0], "cert": secure.client[0], "key": secure.client[1]}
    async with (
        AsyncClient(grpc_address, retries=0, **mine) as over_grpc,  # type: ignore[arg-type]  # mypy sees dict[str, Path]
        AsyncClient(http_address, retries=0, **mine) as over_http,  # type: ignore[arg-type]
    ):
        while not done.is_set():
            labels = [(await client.predict(WHITE)).label for client in (over_grpc, over_http)]
            assert labels == ["bright", "bright"]
            count += 1
    return count


async def rotate_under_load(secure: Secure) -> int:
    done = asyncio.Event()
    load = asyncio.create_task(ask_while(secure, done))
    await asyncio.sleep(0.1)
    secure.use(*secure.second)
    for address in secure.addresses():
        while True:  # new connections see the new certificate as soon as it has been noticed
            try:
                assert await asyncio.to_thread(secure.ask, address, secure.second[0]) == "bright"
                break
            except Unavailable:
                await asyncio.sleep(0.1)
    done.set()
    return await load


def test_new_certificates_are_used_without_losing_a_request(secure: Secure) -> None:
    assert asyncio.run(rotate_under_load(secure)) > 0
    for address in secure.addresses():
        with pytest.raises(Unavailable):
            secure.ask(address, secure.first[0])
    # An authority that is withdrawn is forgotten, too.
    secure.ca.write_bytes(secure.second[0].read_bytes())
    for address in secure.addresses():
        with pytest.raises(Unavailable):
            ask_for_seconds(secure, address)


def ask_for_seconds(secure: Secure, address: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        secure.ask(address, secure.second[0])


@pytest.mark.parametrize("broken", ["garbage", "another key", "missing"])
def test_broken_certificates_leave_the_old_ones(secure: Secure, broken: str) -> None:
    if broken == "garbage":
        secure.cert.write_text("garbage")
    elif broken == "another key":
        secure.key.write_bytes(secure.second[1].read_bytes())
    else:
        secure.key.unlink()
    time.sleep(2 * INTERVAL_S)
    for address in secure.addresses():
        assert secure.ask(address, secure.first[0]) == "bright"
    code, output = stop(secure.served)
    assert code == 0
    assert output.count("the certificates have changed and cannot be used, so the old ones stay") == 1
    assert "Traceback" not in output


def test_certificates_that_cannot_be_used_end_the_start(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "a")
    _, other = make_certificate(tmp_path, "b")
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:word", "-out", encrypted], check=True)
    (tmp_path / "garbage.pem").write_text("garbage")
    garbage = str(tmp_path / "garbage.pem")
    for flags, message in (
        (("--tls-cert", str(cert)), "tls_cert and tls_key belong together, but only one is given"),
        (("--tls-client-ca", str(cert)), "tls_client_ca is given, but there is no TLS without tls_cert and tls_key"),
        (("--tls-cert", "missing", "--tls-key", str(key)), "missing cannot be read: No such file"),
        (("--tls-cert", str(cert), "--tls-key", str(other)), "are not a PEM certificate and its key"),
        (("--tls-cert", garbage, "--tls-key", str(key)), "are not a PEM certificate and its key"),
        (("--tls-cert", str(cert), "--tls-key", str(encrypted)), "is encrypted: decrypt it"),
        (("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", garbage), "holds no PEM certificate"),
    ):
        result = run_stn("serve", *flags)
        assert result.returncode == 2
        assert result.stderr.startswith("stn: error: ")
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("spoken", ["http/1.1", None])
def test_the_grpc_port_hangs_up_on_tls_that_does_not_agree_on_http2(secure: Secure, spoken: str | None) -> None:
    context = ssl.create_default_context(cafile=secure.first[0])
    context.load_cert_chain(*secure.client)
    if spoken:
        context.set_alpn_protocols([spoken])
    host, _, port = secure.served.grpc.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        contextlib.suppress(ssl.SSLError),
        context.wrap_socket(plain, server_hostname="localhost") as caller,
    ):
        assert caller.recv(1) == b""
    assert secure.ask(secure.addresses()[0], secure.first[0]) == "bright", "others are served"


def test_workers_speak_tls_and_survive_those_that_do_not(secure: Secure) -> None:
    stop(secure.served)
    secure.served = start(secure.repository, *secure.files, "--workers", "2")
    for address in (secure.served.grpc, secure.served.http):
        host, _, port = address.rpartition(":")
        for _ in range(4):
            with socket.create_connection((host, int(port)), timeout=10) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    while stranger.recv(100):
                        pass
    for address in secure.addresses():
        for _ in range(4):
            assert secure.ask(address, secure.first[0]) == "bright"
