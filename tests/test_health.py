"""`stn health` against really started servers, as the probe of a container runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx_models import publish_vision
from self_signed import make_certificate
from served import Served, run_stn, running


def port_of(served: Served) -> str:
    return served.http.rpartition(":")[2]


def test_it_tells_a_server_that_is_ready(vision_server: Served) -> None:
    found = run_stn("health", "--http-port", port_of(vision_server), "--host", "0.0.0.0")
    assert (found.returncode, found.stdout) == (0, "ready\n")


def test_it_tells_that_nobody_listens() -> None:
    found = run_stn("health", "--http-port", "1")
    assert found.returncode == 1
    assert found.stderr == "not ready: http://127.0.0.1:1/v2/health/ready: [Errno 111] Connection refused\n"


def test_it_speaks_the_tls_of_the_settings(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "server")
    publish_vision(tmp_path / "models")
    tls = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-client-ca", str(cert))
    with running(tmp_path / "models", *tls) as served:
        assert run_stn("health", "--http-port", port_of(served), *tls).stdout == "ready\n"
        without = run_stn("health", "--http-port", port_of(served))
        assert (without.returncode, without.stdout) == (1, "")


def test_a_probe_without_a_token_is_told_why_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_TEST_TOKEN", "secret")
    publish_vision(tmp_path / "models")
    with running(tmp_path / "models", "--tokens", "all=env:STN_TEST_TOKEN") as served:
        found = run_stn("health", "--http-port", port_of(served))
        assert found.returncode == 1
        assert "answers 401" in found.stderr
        assert "calls of the group 'health' need a token" in found.stderr


def test_a_free_port_cannot_be_known() -> None:
    found = run_stn("health", "--http-port", "0")
    assert found.returncode == 2
    assert "http_port is 0, a free port that only the server knows: its --ready-file has it" in found.stderr
