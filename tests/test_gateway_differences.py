"""Tritons that are not what their gateway was told, or differ: a clear message, and readiness that tells the truth."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gateway_tritons import running_tritons
from python_backend import ECHO_CONFIG, publish_echo
from self_signed import make_certificate
from served import FREE_PORTS, run_stn

from benchmarks.real_triton import Triton
from stn_serve.errors import ConfigurationError, NotFound
from stn_serve.gateway_catalogue import GatewayCatalogue
from stn_serve.loading import IndexEntry
from stn_serve.settings import ServerSettings
from stn_serve.validation import ValidRequest

SEQUENCES = ECHO_CONFIG + "sequence_batching { }"
BROKEN = "raise RuntimeError('no such weights')"


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Triton]]:
    """Two that have the model `same` in common."""
    first, second = (tmp_path_factory.mktemp(name) / "repository" for name in ("first", "second"))
    for repository in (first, second):
        publish_echo(repository, "same")
    publish_echo(first, "single")
    publish_echo(first, "rolling", version=1)
    publish_echo(second, "rolling", version=2)
    publish_echo(first, "other")
    publish_echo(second, "other", ECHO_CONFIG.replace("max_batch_size: 4", "max_batch_size: 2"))
    publish_echo(second, "sequences", SEQUENCES)
    publish_echo(first, "broken")
    (first / "broken" / "1" / "model.py").write_text(BROKEN)
    models = [path.name for path in first.iterdir()], [path.name for path in second.iterdir()]
    flags = ("--strict-readiness=false", "--exit-on-error=false")
    with running_tritons((first, models[0]), (second, models[1]), flags=flags) as tritons:
        yield tritons


@asynccontextmanager
async def gateway(*addresses: str, **settings: object) -> AsyncIterator[GatewayCatalogue]:
    catalogue = await GatewayCatalogue.start(
        ServerSettings(engine="triton", triton_url=addresses, **settings)  # type: ignore[arg-type]  # by name
    )
    try:
        yield catalogue
    finally:
        await catalogue.close()


def entries(catalogue: GatewayCatalogue) -> dict[tuple[str, int | None], IndexEntry]:
    return {(entry.name, entry.version): entry for entry in catalogue.index}


async def answers(catalogue: GatewayCatalogue, model: str, version: str = "") -> None:
    served = catalogue.find(model, version)
    with served.request() as request:
        array = np.ones((1, 1), np.float32)
        answer = await request.run(ValidRequest({"x": array}, ["y"], 1))
    assert answer.outputs["y"].tolist() == [[1.0]]


def test_what_differs_is_named_and_asked_where_it_is(tritons: list[Triton], caplog: pytest.LogCaptureFixture) -> None:
    first, second = (triton.grpc for triton in tritons)

    async def scenario() -> None:
        async with gateway(first, second) as catalogue:
            found = entries(catalogue)
            told = {key: (entry.state, entry.reason) for key, entry in found.items() if key[0] != "broken"}
            assert told == {
                ("same", 1): ("READY", ""),
                ("single", 1): ("READY", f"{second} does not have it"),
                ("rolling", 1): ("READY", f"{second} does not have it"),
                ("rolling", 2): ("READY", f"{first} does not have it"),
                ("other", 1): ("READY", f"{second} has it with another configuration and is not asked"),
                ("sequences", 1): (
                    "UNAVAILABLE",
                    "model 'sequences': sequence_batching is not passed on to Triton",
                ),
            }
            broken = found["broken", 1]
            assert broken.state == "UNAVAILABLE"
            assert broken.reason.startswith(f"{first} cannot serve it: ")
            assert "no such weights" in broken.reason
            for model in ("broken", "sequences"):
                with pytest.raises(NotFound, match=f"'{model}' has no available versions; the repository index says"):
                    catalogue.find(model)
            assert catalogue.ready
            assert catalogue.find("rolling").model.version == 2
            for model, version in (("same", ""), ("single", ""), ("rolling", "1"), ("rolling", "2"), ("other", "")):
                for _ in range(2):
                    await answers(catalogue, model, version)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert f"model 'single' version 1: {second} does not have it" in caplog.text


def test_what_one_address_of_several_does_wrong_costs_the_others_nothing(
    tritons: list[Triton], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with gateway(tritons[0].grpc, tritons[1].http, "no-such-host.invalid:8001") as catalogue:
            assert catalogue.ready
            assert entries(catalogue)["same", 1] == IndexEntry("same", 1, catalogue.find("same"))
            await answers(catalogue, "same")

    asyncio.run(scenario())
    assert f"Triton {tritons[1].http} gets no requests: failed to connect" in caplog.text
    assert "Triton no-such-host.invalid:8001 gets no requests: " in caplog.text
    assert caplog.text.count("is this the port of its gRPC") == 2


def test_a_gateway_that_starts_first_waits_for_triton(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with gateway("127.0.0.1:1") as catalogue:
            assert not catalogue.ready
            assert catalogue.index == []

    asyncio.run(scenario())
    assert "Triton 127.0.0.1:1 gets no requests: failed to connect to all addresses" in caplog.text


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("triton", "triton_url is 'triton', expected HOST:PORT"),
        (":8001", "triton_url is ':8001', expected HOST:PORT"),
        ("triton:http", "triton_url is 'triton:http', expected HOST:PORT"),
        ("triton:99999", "triton_url is 'triton:99999', expected HOST:PORT"),
        ("a:8001,", "triton_url is '', expected HOST:PORT"),
        ("http://triton:8000", "triton_url is 'http://triton:8000', expected HOST:PORT of Triton's gRPC"),
        ("tcp://triton:8000", "triton_url: address 'tcp://triton:8000': expected"),
        ("a:8001,b:8001,a:8001", "triton_url names a:8001 more than once"),
    ],
)
def test_addresses_that_cannot_be_end_the_start(urls: str, message: str) -> None:
    async def scenario() -> None:
        async with gateway(urls):
            pass

    with pytest.raises(ConfigurationError, match=re.escape(message)):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "triton"}, "engine is triton, but triton_url does not say where it is"),
        ({"triton_url": ("a:8001",)}, "triton_url is given, but engine is onnxruntime"),
        ({"triton_ca": Path("ca.pem")}, "triton_ca is given, but engine is onnxruntime"),
        ({"triton_header": ("a=env:B",)}, "triton_header is given, but engine is onnxruntime"),
        (
            {"engine": "triton", "triton_url": ("a:8001",), "model_control_mode": "poll"},
            "model_control_mode is poll, but engine is triton",
        ),
        (
            {"engine": "triton", "triton_url": ("a:8001",), "triton_cert": Path("cert.pem")},
            "triton_cert and triton_key belong together",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerSettings(**settings)


def test_the_command_line_says_so_in_one_line() -> None:
    result = run_stn("serve", "--engine", "triton", "--triton-url", "triton", *FREE_PORTS)
    assert result.returncode == 2
    assert result.stderr.startswith("stn: error: triton_url is 'triton', expected HOST:PORT of Triton's gRPC")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Triton, Path]]:
    """One that speaks TLS and wants a secret for inference; and the certificate to trust."""
    directory = tmp_path_factory.mktemp("guarded")
    cert, key = make_certificate(directory / "tls", "triton")
    publish_echo(directory / "repository", "same")
    flags = (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={cert}",
        f"--grpc-server-key={key}",
        "--grpc-restricted-protocol=inference:key=open-sesame",
    )
    with running_tritons((directory / "repository", ["same"]), flags=flags) as (triton,):
        yield triton, cert


def test_a_triton_with_tls_and_a_secret_is_asked_with_both(
    guarded: tuple[Triton, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, cert = guarded
    (tmp_path / "secret").write_text("open-sesame\n")
    monkeypatch.setenv("TRITON_SECRET", "open-sesame")

    async def scenario(source: str) -> None:
        header = f"triton-grpc-protocol-key={source}"
        async with gateway(f"grpcs://{triton.grpc}", triton_ca=cert, triton_header=(header,)) as catalogue:
            await answers(catalogue, "same")

    asyncio.run(scenario(f"file:{tmp_path / 'secret'}"))
    asyncio.run(scenario("env:TRITON_SECRET"))


def test_a_secret_or_certificate_that_is_missing_is_told_and_it_is_not_ready(
    guarded: tuple[Triton, Path], caplog: pytest.LogCaptureFixture
) -> None:
    triton, cert = guarded

    async def scenario(address: str, **settings: object) -> None:
        async with gateway(address, **settings) as catalogue:
            assert not catalogue.ready

    asyncio.run(scenario(f"grpcs://{triton.grpc}", triton_ca=cert))
    assert "This protocol is restricted, expecting header 'triton-grpc-protocol-key'" in caplog.text
    assert "give the gateway that header with --triton-header" in caplog.text
    caplog.clear()
    asyncio.run(scenario(triton.grpc))
    assert f"Triton {triton.grpc} gets no requests: failed to connect" in caplog.text
    caplog.clear()
    asyncio.run(scenario(f"grpcs://{triton.grpc}"))
    assert f"Triton grpcs://{triton.grpc} gets no requests: failed to connect" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"triton_header": ("key=file:nowhere",)}, "triton_header key: file:nowhere cannot be read: No such file"),
        ({"triton_header": ("key=env:NOT_SET",)}, "triton_header key: env:NOT_SET holds no token"),
        ({"triton_header": ("key=open-sesame",)}, "triton_header is not NAME=file:PATH or NAME=env:NAME"),
        ({"triton_ca": Path("nowhere.pem")}, "triton_ca, triton_cert or triton_key: .*nowhere.pem"),
    ],
)
def test_secrets_that_are_missing_end_the_start(settings: dict[str, object], message: str) -> None:
    async def scenario() -> None:
        async with gateway("127.0.0.1:1", **settings):
            pass

    with pytest.raises(ConfigurationError, match=message) as raised:
        asyncio.run(scenario())
    assert "sesame" not in str(raised.value)
