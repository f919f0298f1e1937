from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from onnx_models import IDENT_CONFIG, publish_ident, publish_slow
from served import Served, running, start, stop
from tritonclient.utils import InferenceServerException

from stn_serve.errors import NotFound, Unsupported
from stn_serve.registry import ModelRegistry

EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_ident(tmp_path)
    return tmp_path


@pytest.fixture
def served(repository: Path) -> Iterator[Served]:
    with running(repository, *EXPLICIT) as served:
        yield served


def ask_ident(client: Any, module: Any = tritonclient.grpc) -> str:
    image = module.InferInput("image", [1, 1, 28, 28], "FP32")
    image.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
    return str(client.infer("ident", [image]).get_output("logits") and "answered")


def test_a_new_version_takes_over_without_a_lost_request(repository: Path, served: Served) -> None:
    failures: list[InferenceServerException] = []
    stopped = threading.Event()

    def ask() -> None:
        with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
            while not stopped.is_set():
                try:
                    ask_ident(client)
                except InferenceServerException as error:
                    failures.append(error)

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        for version in (2, 3):
            publish_ident(repository / "staged", version=version)
            shutil.move(repository / "staged" / "ident" / str(version), repository / "ident")
            shutil.rmtree(repository / "staged")
            client.load_model("ident")
            assert list(client.get_model_metadata("ident").versions) == [str(version)]
        stopped.set()
        for caller in callers:
            caller.join()
    assert failures == []


def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving(repository: Path, served: Served) -> None:
    (repository / "ident" / "config.pbtxt").write_text("nonsense")
    with tritonclient.http.InferenceServerClient(served.http) as client:
        with pytest.raises(InferenceServerException, match=r"load failed for model 'ident': .*config.pbtxt cannot be"):
            client.load_model("ident")
        assert ask_ident(client, tritonclient.http) == "answered"
        (repository / "ident" / "config.pbtxt").write_text(IDENT_CONFIG)
        client.load_model("ident")


def test_an_unloaded_model_finishes_its_requests_and_answers_no_more(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=40)
    answers: list[dict[str, Any]] = []
    tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    with running(tmp_path, *EXPLICIT) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.async_infer("slow", [tensor], callback=lambda **outcome: answers.append(outcome))
        time.sleep(0.2)
        client.unload_model("slow", unload_dependents=True)
        assert answers == []
        assert not client.is_model_ready("slow")
        (entry,) = client.get_model_repository_index().models
        assert (entry.name, entry.version, entry.state, entry.reason) == ("slow", "1", "UNAVAILABLE", "unloaded")
        with pytest.raises(InferenceServerException, match="'slow' has no available versions"):
            client.infer("slow", [tensor])
        while not answers:
            time.sleep(0.02)
    assert answers[0]["error"] is None


def test_clients_may_not_control_models_unless_they_are_let(repository: Path) -> None:
    registry = ModelRegistry.load(repository)
    for change in (registry.load_model, registry.unload_model):
        with pytest.raises(Unsupported, match="explicit model load / unload is not allowed"):
            asyncio.run(change("ident"))


@pytest.mark.parametrize("name", ["nope", "../ident", "", ".", "..", "ident/1"])
def test_only_models_of_the_repository_are_loaded(repository: Path, name: str) -> None:
    registry = ModelRegistry.load(repository, "explicit")
    with pytest.raises(NotFound, match=re.escape(f"failed to load '{name}'")):
        asyncio.run(registry.load_model(name))
    with pytest.raises(NotFound, match=re.escape(f"failed to unload '{name}'")):
        asyncio.run(registry.unload_model(name))


def test_overrides_of_the_repository_are_refused(served: Served) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(served.grpc) as client,
        pytest.raises(InferenceServerException, match="load parameter 'config' is not supported"),
    ):
        client.load_model("ident", config="{}")


def test_health_is_watched_through_unloading_and_the_end(repository: Path) -> None:
    served = start(repository, *EXPLICIT)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name
    with grpc.insecure_channel(served.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        model = stub.Watch(health_pb2.HealthCheckRequest(service="ident"))
        server = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nope"))
        assert [name(next(watch).status) for watch in (model, server, unknown)] == [
            "SERVING",
            "SERVING",
            "SERVICE_UNKNOWN",
        ]
        with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
            client.unload_model("ident")
            assert name(next(model).status) == "NOT_SERVING"
            client.load_model("ident")
            assert name(next(model).status) == "SERVING"
        code, output = stop(served)
        assert code == 0, output
        assert [name(status.status) for status in server] == ["NOT_SERVING"]


def test_an_open_stream_does_not_hold_up_the_end(repository: Path) -> None:
    served = start(repository)
    errors: list[InferenceServerException] = []
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda **outcome: errors.append(outcome["error"]))
        time.sleep(0.2)
        began = time.monotonic()
        code, output = stop(served)
        assert code == 0, output
        assert time.monotonic() - began < 20  # the grace time is 30 s
    assert [error.status() for error in errors] == ["StatusCode.UNAVAILABLE"]


def test_reflection_describes_every_service(served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        assert set(reflection.get_services()) == {
            "grpc.health.v1.Health",
            "inference.GRPCInferenceService",
            "stn.v1.ImagePrediction",
        }
        file = reflection.FindFileContainingSymbol("inference.GRPCInferenceService")
        assert "ModelStreamInfer" in [method.name for method in file.service[0].method]


def test_explicit_mode_starts_with_what_is_named_and_lists_the_rest(repository: Path) -> None:
    publish_ident(repository, "other")
    with (
        running(repository, "--model-control-mode", "explicit", "--load-model", "ident") as served,
        tritonclient.http.InferenceServerClient(served.http) as client,
    ):
        expected = [{"name": "ident", "version": "1", "state": "READY"}, {"name": "other"}]
        assert client.get_model_repository_index() == expected
        assert not client.is_model_ready("other")
        publish_ident(repository, "late")
        assert {"name": "late"} in client.get_model_repository_index()
        client.load_model("other")
        assert client.is_model_ready("other")


def test_explicit_mode_starts_with_nothing_and_is_ready(repository: Path) -> None:
    with (
        running(repository, "--model-control-mode", "explicit") as served,
        tritonclient.grpc.InferenceServerClient(served.grpc) as client,
    ):
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="unknown model: 'ident' is not found"):
            ask_ident(client)
        client.load_model("ident")
        assert ask_ident(client) == "answered"
