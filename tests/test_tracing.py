"""Traces as a collector gets them, of requests to a real server over both transports."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import urllib3
from onnx_models import publish_vision
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as collector_pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from PIL import Image
from served import Served, run_stn, running
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub


class Collector(TraceServiceServicer):
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()

    def Export(self, request: Any, _: Any) -> Any:
        for resource in request.resource_spans:
            self.services |= {
                pair.value.string_value for pair in resource.resource.attributes if pair.key == "service.name"
            }
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return collector_pb.ExportTraceServiceResponse()

    def roots(self) -> dict[str, Span]:
        """By the request's id."""
        return {attributes(span)["stn.request_id"]: span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER}

    def children(self, parent: Span) -> list[Span]:
        return sorted(
            (span for span in self.spans if span.parent_span_id == parent.span_id),
            key=lambda span: (span.start_time_unix_nano, span.name),
        )


def attributes(span: Span) -> dict[str, Any]:
    return {
        pair.key: pair.value.string_value if pair.value.HasField("string_value") else pair.value.int_value
        for pair in span.attributes
    }


@contextmanager
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    try:
        yield collector
    finally:
        server.stop(None)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_vision(tmp_path)
    return tmp_path


def tensor(model: str, request_id: str) -> Any:
    data = np.zeros((2, 8, 8, 1), np.uint8)
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id, raw_input_contents=[data.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=data.shape)
    return request


def parent(number: int, flags: str = "01") -> str:
    return f"00-{number:032x}-{number:016x}-{flags}"


def image() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(served: Served) -> None:
    """Over HTTP with parents 1 and 2, over gRPC with 3 to 5, one without a parent, one that is not to be sampled."""
    url = f"http://{served.http}"
    urllib3.request(
        "POST",
        f"{url}/v1/models/vision/predict?id=http-image",
        body=image(),
        headers={"Content-Type": "image/png", "traceparent": parent(1), "tracestate": "vendor=value"},
    )
    body = orjson.dumps({"id": "http-wrong", "inputs": []})
    urllib3.request("POST", f"{url}/v2/models/vision/infer", body=body, headers={"Traceparent": parent(2)})
    urllib3.request("GET", f"{url}/v2/health/ready")
    memory = {"shared_memory_region": "x", "shared_memory_byte_size": 64}
    image_in_memory = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "parameters": memory}
    body = orjson.dumps({"id": "no-memory", "inputs": [image_in_memory]})
    assert urllib3.request("POST", f"{url}/v2/models/vision/infer", body=body).status == 501
    with grpc.insecure_channel(served.grpc) as channel:
        tensors = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        tensors.ModelInfer(tensor("vision", "grpc-tensor"), metadata=(("traceparent", parent(3)),))
        list(tensors.ModelStreamInfer(iter([tensor("vision", "stream")]), metadata=(("traceparent", parent(4)),)))
        tensors.ModelInfer(tensor("vision", "unsampled"), metadata=(("traceparent", parent(6, "00")),))
        with pytest.raises(grpc.RpcError):
            tensors.ModelInfer(tensor("nope", "garbage"), metadata=(("traceparent", "garbage"),))
        images = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]
        request = pb.PredictRequest(model_name="vision", id="grpc-images", images=[image(), image()])
        images.Predict(request, metadata=(("traceparent", parent(5)),))


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collector:
    """What a collector got of a server that was asked everything, and has ended."""
    repository = tmp_path_factory.mktemp("repository")
    publish_vision(repository)
    with pytest.MonkeyPatch.context() as monkeypatch, collecting(monkeypatch) as collector:
        with running(repository, "--tracing") as served:
            ask(served)
        return collector


def test_spans_continue_the_callers_traces(collected: Collector) -> None:
    roots = collected.roots()
    assert sorted(roots) == ["garbage", "grpc-images", "grpc-tensor", "http-image", "http-wrong", "no-memory", "stream"]
    for number, name in enumerate(("http-image", "http-wrong", "grpc-tensor", "stream", "grpc-images"), 1):
        assert (int.from_bytes(roots[name].trace_id), int.from_bytes(roots[name].parent_span_id)) == (number, number)
    assert roots["http-image"].trace_state == "vendor=value"
    assert not roots["garbage"].parent_span_id
    assert collected.services == {"stn-serve"}

    assert roots["http-image"].name == "POST /v1/models/{model}[/versions/{version}]/predict"
    assert roots["stream"].name == "ModelStreamInfer"
    assert (
        attributes(roots["grpc-tensor"]).items()
        >= {
            "network.protocol.name": "grpc",
            "stn.model": "vision",
            "stn.version": "1",
            "stn.status": "OK",
            "stn.rows": 2,
        }.items()
    )
    phases = {name: [span.name for span in collected.children(root)] for name, root in roots.items()}
    assert phases["http-image"] == ["decode", "queue", "compute"]
    assert phases["grpc-tensor"] == phases["stream"] == ["queue", "compute"]
    assert sorted(phases["grpc-images"]) == ["compute", "compute", "decode", "decode", "queue", "queue"]
    assert phases["garbage"] == phases["http-wrong"] == []
    assert max(root.end_time_unix_nano for root in roots.values()) <= time.time_ns()
    for root in roots.values():
        times = [
            time for span in collected.children(root) for time in (span.start_time_unix_nano, span.end_time_unix_nano)
        ]
        bounds = (root.start_time_unix_nano, root.end_time_unix_nano)
        assert bounds[0] <= min(times, default=bounds[1]) <= max(times, default=bounds[1]) <= bounds[1]


def test_only_the_servers_faults_are_errors(collected: Collector) -> None:
    roots = collected.roots()
    assert roots["no-memory"].status.code == Status.STATUS_CODE_ERROR
    assert "shared memory" in roots["no-memory"].status.message
    assert roots["http-wrong"].status.code == Status.STATUS_CODE_UNSET
    assert attributes(roots["http-wrong"])["stn.status"] == "INVALID_ARGUMENT"


def test_a_collector_that_is_not_there_holds_up_nobody(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with running(repository, "--tracing") as served:
        url = f"http://{served.http}/v1/models/vision/predict"
        assert urllib3.request("POST", url, body=image(), headers={"Content-Type": "image/png"}).status == 200
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 20  # the exporter itself would try for a minute


def test_without_the_packages_it_says_what_to_install(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = repository / "packages" / "opentelemetry"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('as if it were not there')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")]))
    ports = [word for port in ("grpc", "http", "metrics") for word in (f"--{port}-port", "0")]
    result = run_stn("serve", "--tracing", "--model-repository", str(repository), *ports)
    assert result.returncode == 2
    assert "stn: error: tracing needs OpenTelemetry, which is not installed" in result.stderr
    assert "pip install 'stn-serve[tracing]'" in result.stderr


def test_what_is_off_is_not_even_loaded() -> None:
    probe = "import sys, stn_serve.server, stn_serve.tracing; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "False\n"
