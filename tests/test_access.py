from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx_models import publish_vision
from served import Served, run_stn, running, start, stop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve import Client
from stn_serve.access import GROUPS, OPEN, Access
from stn_serve.errors import ConfigurationError, PermissionDenied, Unauthenticated
from stn_serve.grpc_access import METHOD_GROUPS
from stn_serve.guard import Guard
from stn_serve.image_sources import encode
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto import image_prediction_pb2_grpc as pb_grpc

WHITE = np.full((20, 40), 255, np.uint8)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Every group wants a token; `caller` may infer only, `root` may do everything."""
    directory = tmp_path_factory.mktemp("guarded")
    (directory / "callers").write_text("# two at a time, while they are exchanged\ncaller\nold-caller\n")
    (directory / "root").write_text("root")
    publish_vision(directory / "models")
    rules = (f"inference=file:{directory / 'callers'}", f"all=file:{directory / 'root'}")
    with running(directory / "models", *(part for rule in rules for part in ("--tokens", rule))) as served:
        yield served


def bearer(token: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {token}")] if token else []


def stream(message: object) -> Iterator[object]:
    yield message


Stub: Any = pb_grpc.ImagePredictionStub
"""It is generated, without types."""

GRPC_CALLS: dict[str, Callable[[grpc.Channel, list[tuple[str, str]]], object]] = {
    "inference": lambda channel, metadata: Stub(channel).Predict(pb.PredictRequest(), metadata=metadata),
    "typed stream": lambda channel, metadata: list(
        Stub(channel).PredictStream(stream(pb.PredictRequest()), metadata=metadata)
    ),
    "tensor stream": lambda channel, metadata: list(
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            stream(service_pb2.ModelInferRequest()), metadata=metadata
        )
    ),
    "health": lambda channel, metadata: health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), metadata=metadata
    ),
    "watch": lambda channel, metadata: next(
        health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
    ),
    "metadata": lambda channel, metadata: service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerMetadata(
        service_pb2.ServerMetadataRequest(), metadata=metadata
    ),
    "reflection": lambda channel, metadata: list(
        reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            stream(reflection_pb2.ServerReflectionRequest(list_services="")), metadata=metadata
        )
    ),
    "load": lambda channel, metadata: service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryModelLoad(
        service_pb2.RepositoryModelLoadRequest(model_name="vision"), metadata=metadata
    ),
}


def status(served: Served, name: str, token: str) -> grpc.StatusCode:
    with grpc.insecure_channel(served.grpc) as channel:
        try:
            GRPC_CALLS[name](channel, bearer(token))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


@pytest.mark.parametrize("name", GRPC_CALLS)
def test_every_kind_of_grpc_call_wants_the_token(guarded: Served, name: str) -> None:
    is_inference = name in ("inference", "typed stream", "tensor stream")
    assert status(guarded, name, "") == grpc.StatusCode.UNAUTHENTICATED
    assert status(guarded, name, "guess") == grpc.StatusCode.UNAUTHENTICATED
    assert (status(guarded, name, "caller") != grpc.StatusCode.PERMISSION_DENIED) == is_inference
    refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert status(guarded, name, "root") not in refused


@pytest.mark.parametrize(
    ("method", "path", "for_callers"),
    [
        ("POST", "/v1/predict", True),
        ("POST", "/v2/models/vision/infer", True),
        ("GET", "/v2/health/ready", False),
        ("GET", "/v2", False),
        ("GET", "/openapi.json", False),
        ("GET", "/v2/models/vision/config", False),
        ("GET", "/v2/models/stats", False),
        ("POST", "/v2/repository/models/vision/load", False),
        ("GET", "/v2/systemsharedmemory/status", False),
        ("POST", "/v2/logging", False),
        ("GET", "/v2/trace/setting", False),
        ("GET", "/metrics", False),
    ],
)
def test_every_kind_of_http_request_wants_the_token(guarded: Served, method: str, path: str, for_callers: bool) -> None:
    address = guarded.metrics if path == "/metrics" else guarded.http

    def ask(authorization: str) -> httpx.Response:
        headers = {b"authorization": authorization.encode("latin-1")} if authorization else {}
        return httpx.request(method, f"http://{address}{path}", headers=headers, content=b"{}")

    for wrong in ("", "Bearer guess", "Basic root", "root", "Bearer gu\u00e9ss"):
        answer = ask(wrong)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="stn-serve"'
        assert "root" not in answer.text
    assert (ask("Bearer caller").status_code != 403) == for_callers
    assert ask("bearer root").status_code not in (401, 403)


def test_the_client_brings_its_token(guarded: Served) -> None:
    for address in (guarded.grpc, f"http://{guarded.http}"):
        for token in ("caller", "old-caller", "root"):
            with Client(address, token=token) as stn:
                assert stn.predict(WHITE).label == "bright"
        with Client(address, token="guess") as stn, pytest.raises(Unauthenticated, match="the token is not known"):
            stn.predict(WHITE)


def test_the_command_brings_its_token(guarded: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "white.png"
    image.write_bytes(encode(WHITE))
    asked = "predict", str(image), "--url", guarded.grpc
    monkeypatch.setenv("STN_TOKEN", "caller")
    assert "bright" in run_stn(*asked).stdout
    refused = run_stn(*asked, "--token", "guess")
    assert refused.returncode != 0
    assert "the token is not known" in refused.stderr


def test_the_probe_brings_the_servers_own_token(guarded: Served, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("root")
    (tmp_path / "other").write_text("other")
    for name, code in (("root", 0), ("other", 1)):
        port = guarded.http.rpartition(":")[2]
        result = run_stn("health", "--http-port", port, "--tokens", f"all=file:{tmp_path / name}")
        assert result.returncode == code, result.stderr
        assert name not in result.stdout + result.stderr.replace(str(tmp_path / name), "")


def test_every_method_of_every_service_has_a_group() -> None:
    services = [
        service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        pb.DESCRIPTOR.services_by_name["ImagePrediction"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    ]
    assert {method.name for service in services for method in service.methods} - {"List"} == METHOD_GROUPS.keys()
    assert set(METHOD_GROUPS.values()) | {"metrics"} == set(GROUPS)


def test_tokens_are_exchanged_while_the_server_runs_and_never_logged(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-secret")
    publish_vision(tmp_path / "models")
    served = start(tmp_path / "models", "--tokens", f"inference=file:{tokens}", "--log-level", "debug")
    with Client(served.grpc, token="second-secret") as stn:
        with pytest.raises(Unauthenticated):
            stn.predict(WHITE)
        tokens.write_text("second-secret")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                assert stn.predict(WHITE).label == "bright"
                break
            except Unauthenticated:
                time.sleep(0.1)
        tokens.write_text("")  # broken: the last ones stay
        time.sleep(1.5)
        assert stn.predict(WHITE).label == "bright"
    with Client(f"http://{served.http}", token="first-secret") as stn, pytest.raises(Unauthenticated):
        stn.predict(WHITE)
    code, output = stop(served)
    assert code == 0
    assert "the tokens have changed and are in use" in output
    assert "holds no token" in output
    for operation in ("Predict", "POST /v1/predict"):  # who was refused is told
        assert f"{operation} UNAUTHENTICATED" in output
    assert "secret" not in output


def test_control_is_off_unless_it_is_asked_for(server: Served) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        calls: list[Callable[[], object]] = [
            lambda: client.load_model("ident"),
            lambda: client.unload_model("ident"),
            lambda: client.register_system_shared_memory("region", "/key", 8),
            lambda: client.update_log_settings({"log_verbose_level": 1}),
        ]
        for call in calls:
            with pytest.raises(tritonclient.grpc.InferenceServerException, match="allow") as refused:
                call()
            assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
        assert client.update_log_settings({"log_info": True}, as_json=True)["settings"]["log_info"]["bool_param"]


def test_log_settings_change_where_that_is_allowed(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    with running(tmp_path, "--allow-log-settings") as served:
        url = f"http://{served.http}/v2/logging"
        assert httpx.post(url, json={"log_verbose_level": 1}).json()["log_verbose_level"] == 1
        assert httpx.get(url).json()["log_verbose_level"] == 1


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_what_strangers_may_call_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    monkeypatch.setenv("CALLERS", "word")
    Guard(None, Access(["inference=env:CALLERS"])).warn_of_strangers(host)
    Guard(None, OPEN).warn_of_strangers(host)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("no token protects the calls of health, metadata" in caplog.text) == warned


def test_a_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLERS", "word")
    access = Access(["metadata,health=env:CALLERS"])
    access.check("metadata", "Bearer word")
    access.check("inference", "")
    with pytest.raises(Unauthenticated, match="not known"):
        access.check("health", "Bearer wor")
    assert "inference" in access.open_groups
    assert "health" not in access.open_groups
    monkeypatch.setenv("ADMIN", "other")
    access = Access(["metadata=env:CALLERS", "statistics=env:ADMIN"])
    with pytest.raises(PermissionDenied, match="not for calls of the group 'statistics'"):
        access.check("statistics", "Bearer word")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("inference", "a rule of tokens is not GROUP"),
        ("inference=hunter2", "a rule of tokens is not GROUP"),
        ("inference=file:", "a rule of tokens is not GROUP"),
        ("fun=env:X", "there is no group 'fun', expected health, metadata,"),
        ("inference=env:STN_NO_SUCH_VARIABLE", "env:STN_NO_SUCH_VARIABLE holds no token"),
        ("inference=file:/no/such/file", "cannot be read: No such file"),
        ("inference=file:{file}", "holds a token with spaces"),
    ],
)
def test_rules_that_cannot_be_used(tmp_path: Path, rule: str, message: str) -> None:
    (tmp_path / "file").write_text("two words")
    with pytest.raises(ConfigurationError, match=message) as refused:
        Access([rule.format(file=tmp_path / "file")])
    assert "hunter2" not in str(refused.value)


def test_a_rule_that_cannot_be_used_ends_the_start() -> None:
    result = run_stn("serve", "--tokens", "inference=env:STN_NO_SUCH_VARIABLE")
    assert result.returncode == 2
    assert result.stderr == "stn: error: tokens for inference: env:STN_NO_SUCH_VARIABLE holds no token\n"
