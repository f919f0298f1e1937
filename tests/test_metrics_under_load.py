"""What is scraped agrees with what callers count, to the request: answered, wrong, refused, cancelled, failed."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import urllib3
from onnx import TensorProto, helper
from onnx_models import IDENT_CONFIG, build, publish, publish_ident, publish_vision
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import Served, running
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

WAITS = "dynamic_batching { max_queue_delay_microseconds: 60000000 default_queue_policy { max_queue_size: 4 } }"
REASONS = {
    grpc.StatusCode.UNAVAILABLE: "REJECTED",
    grpc.StatusCode.CANCELLED: "CANCELED",
    grpc.StatusCode.DEADLINE_EXCEEDED: "CANCELED",
    grpc.StatusCode.INTERNAL: "BACKEND",
}


def png(brightness: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((12, 9), brightness, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


DARK, BRIGHT, BROKEN = png(0), png(255), png(9)[:30]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`ident` and `vision`; `patient` waits for a full batch, four requests at most; `fussy` fails unless it gets 4."""
    repository = tmp_path_factory.mktemp("repository")
    publish_ident(repository)
    publish_vision(repository)
    publish_ident(repository, "patient", IDENT_CONFIG.replace("dynamic_batching { }", WAITS))
    fussy = build(
        [helper.make_node("Reshape", ["x", "four"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        constants={"four": np.array([4])},
    )
    config = """input [{ name: "x" data_type: TYPE_FP32 dims: [-1] }]
                output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]"""
    publish(repository, "fussy", fussy, config)
    with running(repository, "--log-level", "error") as served:
        yield served


@dataclass
class Counts:
    """By model and outcome; threads share it."""

    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, model: str, requests: int = 1) -> None:
        with self.lock:
            self.begun[model] += requests

    def end(self, model: str, outcome: str, rows: int = 0) -> None:
        with self.lock:
            self.ended[model, outcome] += 1
            self.rows[model] += rows

    def totals(self) -> Counter[str]:
        with self.lock:
            return sum((Counter({model: count}) for (model, _), count in self.ended.items()), Counter[str]())


class Caller:
    """Asks and counts; each thread has its own."""

    def __init__(self, served: Served, counts: Counts) -> None:
        self.counts = counts
        self.channel = grpc.insecure_channel(served.grpc)
        self.tensors = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.images = ImagePredictionStub(self.channel)  # type: ignore[no-untyped-call]
        self.pool = urllib3.PoolManager(retries=False)
        self.http = f"http://{served.http}"

    def infer(self, request: Any, rows: int, timeout_s: float | None = None) -> None:
        self.counts.begin(request.model_name)
        try:
            self.tensors.ModelInfer(request, timeout=timeout_s)
        except grpc.RpcError as error:
            self.counts.end(request.model_name, REASONS.get(error.code(), "OTHER"))
        else:
            self.counts.end(request.model_name, "success", rows)

    def infer_stream(self, requests: list[Any], rows: list[int]) -> None:
        self.counts.begin("ident", len(requests))
        for answer, count in zip(self.tensors.ModelStreamInfer(iter(requests)), rows, strict=True):
            self.counts.end("ident", *(("OTHER", 0) if answer.error_message else ("success", count)))

    def post(self, model: str, path: str, body: bytes, rows: int) -> None:
        self.counts.begin(model)
        status = self.pool.request("POST", f"{self.http}{path}", body=body).status
        outcome = {200: "success", 503: "REJECTED", 500: "BACKEND"}.get(status, "OTHER")
        self.counts.end(model, outcome, rows if status == 200 else 0)

    def predict(self, images: list[bytes]) -> None:
        """Each image counts as a request of its own."""
        self.counts.begin("vision", len(images))
        try:
            response = self.images.Predict(pb.PredictRequest(model_name="vision", images=images))
        except grpc.RpcError:
            self.counts.end("vision", "OTHER")
            return
        for result in response.results:
            self.counts.end("vision", *(("OTHER", 0) if result.HasField("error") else ("success", 1)))

    def close(self) -> None:
        self.channel.close()
        self.pool.clear()


def ident(rows: int, model: str = "ident") -> Any:
    data = np.zeros((rows, 1, 28, 28), np.float32)
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=data.shape)
    return request


def vision(rows: int, *outputs: str) -> Any:
    data = np.full((rows, 8, 8, 1), 255, np.uint8)
    request = service_pb2.ModelInferRequest(model_name="vision", raw_input_contents=[data.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=data.shape)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def fussy(size: int) -> Any:
    request = service_pb2.ModelInferRequest(
        model_name="fussy", raw_input_contents=[np.zeros(size, np.float32).tobytes()]
    )
    request.inputs.add(name="x", datatype="FP32", shape=[size])
    return request


JSON = orjson.dumps(
    {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": list(range(784))}]}
)
ASKING: list[Callable[[Caller], None]] = [
    lambda caller: caller.infer(ident(1), 1),
    lambda caller: caller.infer(ident(3), 3),
    lambda caller: caller.infer(ident(9), 9),  # more than a batch
    lambda caller: caller.infer_stream([ident(2), ident(9), ident(1)], [2, 0, 1]),
    lambda caller: caller.post("ident", "/v2/models/ident/infer", JSON, 1),
    lambda caller: caller.post("ident", "/v2/models/ident/infer", JSON[:-1], 1),
    lambda caller: caller.post("ident", "/v2/models/ident/infer", b'{"inputs": []}', 1),
    lambda caller: caller.infer(vision(2), 2),
    lambda caller: caller.infer(vision(1, "logits"), 1),
    lambda caller: caller.infer(vision(1, "nonsense"), 1),
    lambda caller: caller.predict([DARK, BROKEN, BRIGHT]),
    lambda caller: caller.predict([BROKEN]),
    lambda caller: caller.post("vision", "/v1/models/vision/predict", BRIGHT, 1),
    lambda caller: caller.post("vision", "/v1/models/vision/predict", b"no image", 1),
    lambda caller: caller.infer(fussy(4), 1),
    lambda caller: caller.infer(fussy(5), 1),
]
LOGITS_ALONE = 1
"""Of the rows above those whose theta nobody asked for."""


def ask(served: Served, counts: Counts, seed: int) -> None:
    caller = Caller(served, counts)
    try:
        for number in np.random.default_rng(seed).permutation(len(ASKING) * 3):
            ASKING[number % len(ASKING)](caller)
    finally:
        caller.close()


Series = dict[str, float]


def scrape(served: Served) -> dict[str, Series]:
    """By model, then by name and what else its labels say."""
    text = urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            more = [value for name, value in sorted(sample.labels.items()) if name not in ("model", "version")]
            name = sample.name if family.type == "histogram" else sample.name.removesuffix("_total")
            found.setdefault(sample.labels.get("model", ""), {})[" ".join([name, *more])] = sample.value
    return found


def counted(series: Series) -> float:
    return sum(
        value for name, value in series.items() if name.startswith("nv_inference_request_") and "duration" not in name
    )


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def use_patience(served: Served, counts: Counts) -> None:
    """Fill `patient`'s queue, be refused, cancel, hang up, run out of time; then its batch gets full."""
    caller = Caller(served, counts)

    def waiting() -> float:
        return scrape(served)["patient"]["nv_inference_pending_request_count"]

    counts.begin("patient", 4)
    calls = [caller.tensors.ModelInfer.future(ident(1, "patient")) for _ in range(4)]
    until(lambda: waiting() == 4)
    for _ in range(2):
        caller.infer(ident(1, "patient"), 1)
    caller.post("patient", "/v2/models/patient/infer", JSON, 1)
    for call in calls[:2]:
        call.cancel()
        counts.end("patient", "CANCELED")
    until(lambda: waiting() == 2)
    host, _, port = served.http.partition(":")
    counts.begin("patient")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v2/models/patient/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(JSON)}\r\n\r\n"
        connection.sendall(head.encode() + JSON)
        until(lambda: waiting() == 3)
    counts.end("patient", "CANCELED")
    caller.infer(ident(1, "patient"), 1, timeout_s=0.5)
    until(lambda: waiting() == 2)
    caller.infer(ident(6, "patient"), 6)
    for call in calls[2:]:
        call.result()
        counts.end("patient", "success", 1)
    caller.close()


def test_metrics_agree_with_what_callers_count(server: Served) -> None:
    counts = Counts()
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(5))
        work = [threads.submit(ask, server, counts, seed) for seed in range(4)]
        work.append(threads.submit(use_patience, server, counts))
        while not all(job.done() for job in work):
            answered = counts.totals()
            scraped = scrape(server)
            with counts.lock:
                begun = counts.begun.copy()
            for model, series in scraped.items():
                assert answered[model] <= counted(series) <= begun[model] or not model
    for job in work:
        job.result()

    scraped = scrape(server)
    for model in ("ident", "vision", "patient", "fussy"):
        series = scraped[model]
        outcomes = {outcome: counts.ended[model, outcome] for outcome in ("success", "OTHER", *REASONS.values())}
        assert {
            "success": series["nv_inference_request_success"],
            **{reason: series[f"nv_inference_request_failure {reason}"] for reason in [*REASONS.values(), "OTHER"]},
        } == outcomes, model
        assert series["nv_inference_count"] == counts.rows[model]
        for phase in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
            histogram = f"nv_inference_{phase}_duration_histogram_us"
            assert series[f"{histogram}_count"] == series[f"{histogram}_bucket +Inf"] == outcomes["success"]
            assert series[f"{histogram}_sum"] == pytest.approx(series[f"nv_inference_{phase}_duration_us"], abs=1)
        assert series["nv_inference_pending_request_count"] == 0
        assert series["stn_batch_size_count"] == series["nv_inference_exec_count"] <= outcomes["success"]
        assert series["stn_batch_size_sum"] == counts.rows[model]
    assert counts.ended["patient", "REJECTED"] == 3
    assert counts.ended["patient", "CANCELED"] == 4
    assert counts.ended["fussy", "BACKEND"] == 12
    assert (scraped["patient"]["nv_inference_exec_count"], counts.rows["patient"]) == (1, 8)

    series, rows = scraped["vision"], counts.rows["vision"]
    looked = rows - LOGITS_ALONE * 12
    for name in ("rotation_degrees", "shear", "inside_ratio"):
        assert series[f"stn_pose_{name}_count look"] == looked
    for axis, translation in (("x", 0.25), ("y", 0.0)):
        assert series[f"stn_pose_scale_count {axis} look"] == looked
        assert series[f"stn_pose_scale_sum {axis} look"] == pytest.approx(0.5 * looked)
        assert series[f"stn_pose_translation_sum {axis} look"] == pytest.approx(translation * looked)
    assert series["stn_pose_inside_ratio_sum look"] == looked
    assert series["stn_prediction_confidence_count"] == rows
    dark = 12  # the others are bright
    found = [series[f"stn_predictions {label}"] for label in ("dark", "medium", "bright")]
    assert found == [dark, 0, rows - dark]


def test_counters_go_on_over_reloads(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    config = tmp_path / "vision" / "config.pbtxt"
    with running(tmp_path, "--model-control-mode", "explicit", "--load-model", "vision") as served:
        counts, stop = Counts(), threading.Event()

        def load() -> None:
            caller = Caller(served, counts)
            while not stop.is_set():
                caller.infer(vision(2), 2)
            caller.close()

        with ThreadPoolExecutor(2) as threads:
            work = [threads.submit(load) for _ in range(2)]
            for number in range(5):
                config.write_text(config.read_text() + f"# state {number}\n")
                url = f"http://{served.http}/v2/repository/models/vision/load"
                assert urllib3.request("POST", url, body=b"{}").status == 200
            stop.set()
        for job in work:
            job.result()
        series = scrape(served)["vision"]
    assert counts.ended.keys() == {("vision", "success")}
    assert series["nv_inference_request_success"] == counts.ended["vision", "success"]
    assert series["nv_inference_count"] == series["stn_pose_shear_count look"] == counts.rows["vision"]
