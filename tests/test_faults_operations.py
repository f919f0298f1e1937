"""Failures of the world around a server, each of them caused. Elsewhere: broken certificates (test_tls), tokens
(test_access), killed workers and signals (test_workers), ports that are taken (test_server), full disks (test_logs)."""

from __future__ import annotations

import ast
import contextlib
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
from onnx_models import publish_ident, publish_slow, publish_vision
from served import Served, running, start, stop

from stn_serve import Client
from stn_serve.errors import ServingError
from stn_serve.image_sources import encode
from stn_serve.proto import image_prediction_pb2, image_prediction_pb2_grpc

ROOT = Path(__file__).parents[1]
WHITE = np.full((20, 40), 255, np.uint8)


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def open_files(served: Served) -> int:
    return len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))


def resident_mb(served: Served) -> float:
    (line,) = (line for line in Path(f"/proc/{served.process.pid}/status").read_text().splitlines() if "VmRSS" in line)
    return int(line.split()[1]) / 1024


def test_out_of_file_descriptors(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    with running(tmp_path) as served, Client(served.grpc) as before:
        assert before.predict(WHITE).label == "bright"
        limits = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        most = open_files(served) + 20
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
        with contextlib.ExitStack() as crowd:
            for _ in range(40):
                for address in (served.http, served.grpc):
                    with contextlib.suppress(OSError):
                        crowd.enter_context(connect(address))
            time.sleep(0.5)
            assert before.predict(WHITE).label == "bright", "who is connected is served on"
        end = time.monotonic() + 60
        answered = {served.grpc: False, f"http://{served.http}": False}
        while not all(answered.values()) and time.monotonic() < end:
            for address in answered:
                with contextlib.suppress(Exception), Client(address, retries=0, timeout_s=5) as after:
                    answered[address] = after.predict(WHITE).label == "bright"
        assert all(answered.values()), answered


def test_a_supervisor_out_of_file_descriptors_goes_on_when_there_are_some(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    with running(tmp_path, "--workers", "2") as served, Client(served.grpc) as before:
        assert before.predict(WHITE).label == "bright"
        limits = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # those below are taken
        url = f"http://{served.http}"  # channels of gRPC to one address share a connection
        with Client(url, retries=0, timeout_s=1) as refused, pytest.raises(ServingError):
            refused.predict(WHITE)
        assert before.predict(WHITE).label == "bright", "who is connected is served on"
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, limits)
        with Client(url, timeout_s=20) as after:
            assert after.predict(WHITE).label == "bright"


def test_callers_that_never_read_their_answers_cost_little(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"  # answered with some 50 KB
    with running(tmp_path) as served:
        httpx.get(f"http://{served.http}/openapi.json")
        before_mb = resident_mb(served)
        with contextlib.ExitStack() as silent:
            for _ in range(30):
                connection = silent.enter_context(connect(served.http))
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(60):
                        connection.send(ask)
            time.sleep(1)
            assert httpx.get(f"http://{served.http}/v2/health/ready", timeout=30).status_code == 200
            # All answers together would be more.
            assert resident_mb(served) - before_mb < 60
        assert httpx.get(f"http://{served.http}/v2/health/ready", timeout=30).status_code == 200


def test_more_than_the_memory_may_hold_is_refused(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=4)
    with running(tmp_path, "--max-pending-bytes", "1000") as served:
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}' + b" " * 900
        url = f"http://{served.http}/v2/models/slow/infer"
        with ThreadPoolExecutor(3) as callers:
            answers = list(callers.map(lambda _: httpx.post(url, content=body, timeout=60), range(3)))
        assert {answer.status_code for answer in answers} == {200, 503}
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert "would exceed the 1000 allowed" in refused.json()["error"]
        assert refused.headers["retry-after"] == "1"
        assert httpx.post(url, content=body, timeout=60).status_code == 200


def test_more_than_the_memory_may_hold_is_refused_on_a_stream_of_images_too(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    request = image_prediction_pb2.PredictRequest(images=[encode(WHITE)], id="x" * 600)
    with running(tmp_path, "--max-pending-bytes", "1000") as served, grpc.insecure_channel(served.grpc) as channel:
        stream = image_prediction_pb2_grpc.ImagePredictionStub(channel).PredictStream  # type: ignore[no-untyped-call]
        reasons = []
        try:  # a request is refused when it is to be worked on, or with its stream when it arrives
            reasons += [answer.error.message for answer in stream(iter([request] * 20), timeout=30)]
        except grpc.RpcError as error:
            reasons.append(f"{error.code()}: {error.details()}")
        assert any("would exceed the 1000 allowed" in reason for reason in reasons)
        (answer,) = stream(iter([request]), timeout=30)
        assert answer.results


def test_a_model_that_hangs_does_not_hold_the_exit(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=400)
    served = start(tmp_path, "--grace-s", "0.5")
    answers: list[dict[str, Any]] = []
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.ones(1, np.float32))
        client.async_infer("slow", [tensor], callback=lambda **outcome: answers.append(outcome))
        time.sleep(1)
        code, output = stop(served)  # within half a minute
        while not answers:
            time.sleep(0.02)
    assert code == 0, output
    assert answers[0]["error"].status() == "StatusCode.UNAVAILABLE"


def test_a_draining_server_is_not_ready_and_answers(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    served = start(tmp_path, "--drain-s", "5")
    with Client(served.grpc, retries=0) as stn:
        assert stn.predict(WHITE).label == "bright"
        served.process.terminate()
        while httpx.get(f"http://{served.http}/v2/health/ready").status_code == 200:
            time.sleep(0.02)
        assert stn.predict(WHITE).label == "bright"
    output, _ = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, output


WALL_CLOCK = {
    ("time", "time"), ("time", "time_ns"), ("time", "localtime"), ("datetime", "now"), ("datetime", "utcnow"),
    ("datetime", "today"),
}  # fmt: skip
TELL_THE_DATE = {
    "statistics.py": "the last inference, for the protocol's statistics",
    "tracing.py": "when a span began, for those who look at it",
}
"""What may ask for it: nothing is decided by it, so that a clock that jumps changes no timeout, queue or retry."""


def test_no_decision_depends_on_the_wall_clock() -> None:
    asking = {
        path.name
        for path in (ROOT / "stn_serve").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in WALL_CLOCK
    }
    assert asking <= TELL_THE_DATE.keys()
