from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import pytest
import urllib3
from onnx_models import publish_ident, publish_vision
from PIL import Image
from served import FREE_PORTS, Served, start, stop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve.logs import MAX_WAITING, ConsoleFormatter, JsonFormatter, LogWriter
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

TOKEN = "very-secret-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}", "traceparent": "garbage"}
METADATA = (("authorization", f"Bearer {TOKEN}"),)


def png() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


IMAGE = png()
TENSOR = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.125] * 784}


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def ask_everything(served: Served) -> None:
    """Good and bad, over both transports, with images, tensors and a token."""
    infer, predict = (f"http://{served.http}/{path}" for path in ("v2/models/ident/infer", "v1/models/vision/predict"))
    for url, body in (
        (infer, orjson.dumps({"id": "seven", "inputs": [TENSOR]})),
        (
            infer,
            orjson.dumps({"id": "eight", "inputs": [{**TENSOR, "shape": [9, 1, 28, 28], "data": [0.125] * 784 * 9}]}),
        ),
        (infer, b"no json"),
        (predict, IMAGE),
        (predict, IMAGE[:100]),
    ):
        urllib3.request("POST", url, body=body, headers=HEADERS)
    broken = base64.b64encode(IMAGE).decode() + "!"
    body = orjson.dumps({"images": [broken, broken], "top_k": "many"})
    urllib3.request("POST", predict, body=body, headers={**HEADERS, "Content-Type": "application/json"})
    urllib3.request("GET", f"http://{served.http}/v2/%0aforged%1b[31m", headers=HEADERS)
    with grpc.insecure_channel(served.grpc) as channel:
        images = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]
        images.Predict(pb.PredictRequest(model_name="vision", id="nine", images=[IMAGE]), metadata=METADATA)
        images.Predict(pb.PredictRequest(model_name="vision", id="ten", images=[IMAGE, b"no image"]), metadata=METADATA)
        list(
            images.PredictStream(
                iter([pb.PredictRequest(model_name="vision", id="eleven", images=[b"x"])]), metadata=METADATA
            )
        )
        tensors = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="nope", id="twelve", raw_input_contents=[IMAGE])
        with pytest.raises(grpc.RpcError):
            tensors.ModelInfer(request, metadata=METADATA)
        list(tensors.ModelStreamInfer(iter([request]), metadata=METADATA))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What servers print that were asked everything, by log format."""
    repository = tmp_path_factory.mktemp("repository")
    publish_ident(repository)
    publish_vision(repository)
    printed = {}
    for form in ("json", "console"):
        served = start(repository, "--log-format", form, "--log-level", "debug")
        try:
            ask_everything(served)
        finally:
            _, printed[form] = stop(served)
        (repository / "ready.json").unlink()
    return printed


def test_every_request_has_a_line(output: dict[str, str]) -> None:
    told = [line for line in lines(output["json"]) if "duration_us" in line]
    by_id = {line["request_id"]: line for line in told}
    good = by_id["seven"]
    assert (good["level"], good["status"], good["model"], good["version"]) == ("debug", "OK", "ident", "1")
    assert good["operation"] == "POST /v2/models/{model}[/versions/{version}]/infer"
    assert (good["protocol"], good["rows"]) == ("http", 1)
    assert good["duration_us"] >= good["queue_us"] + good["compute_us"] > 0
    bad = by_id["eight"]
    assert (bad["level"], bad["status"]) == ("info", "INVALID_ARGUMENT")
    assert "batch-size must be <= 8" in bad["error"]
    image = by_id["nine"]
    assert (image["protocol"], image["operation"], image["model"], image["rows"]) == ("grpc", "Predict", "vision", 1)
    assert image["duration_us"] >= image["decode_us"] + image["compute_us"] > 0
    partly = by_id["ten"]
    assert (partly["level"], partly["status"], partly["rows"], partly["failed_rows"]) == ("info", "OK", 1, 1)
    assert (by_id["eleven"]["operation"], by_id["eleven"]["status"]) == ("PredictStream", "INVALID_ARGUMENT")
    unknown = [line for line in told if line["request_id"] == "twelve"]
    assert [(line["operation"], line["status"]) for line in unknown] == [
        ("ModelInfer", "NOT_FOUND"),
        ("ModelStreamInfer", "NOT_FOUND"),
    ]


def test_a_request_without_an_id_gets_one(output: dict[str, str]) -> None:
    made = [line["request_id"] for line in lines(output["json"]) if line.get("status") and "error" in line]
    assert all(made)
    assert len([identity for identity in made if re.fullmatch("[0-9a-f]{16}", identity)]) == 4


def test_every_line_is_json(output: dict[str, str]) -> None:
    told = [json.loads(line) for line in output["json"].splitlines()]
    assert {line["level"] for line in told} == {"debug", "info"}
    [serving] = [line for line in told if line["message"] == "serving"]
    assert sorted(serving.keys() & {"grpc", "http", "metrics"}) == ["grpc", "http", "metrics"]
    assert [line["model"] for line in told if line["message"] == "model ready"] == ["ident", "vision"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_image_and_no_secret_is_ever_written(output: dict[str, str], form: str) -> None:
    written = output[form]
    assert TOKEN not in written
    assert "0.125" not in written
    encoded = base64.b64encode(IMAGE).decode()
    for start_at in range(0, len(encoded) - 12, 12):
        assert encoded[start_at : start_at + 12] not in written
    assert "IHDR" not in written
    assert "\\x89PNG" not in written


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_caller_cannot_forge_a_line(output: dict[str, str], form: str) -> None:
    assert not re.search(r"^forged", output[form], re.MULTILINE)
    assert "\x1b[31m" not in output[form]
    assert re.search(r"GET /v2/.*forged", output[form])


def record(message: str, **extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "uvicorn.error", "levelname": "ERROR", "msg": message, **extra})


def test_a_traceback_is_part_of_its_line() -> None:
    try:
        int("of no use")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    line = json.loads(JsonFormatter().format(failed))
    assert (line["message"], line["logger"], line["level"]) == ("failed", "uvicorn.error", "error")
    assert line["exception"].endswith("base 10: 'of no use'")
    assert ConsoleFormatter().format(failed).endswith("base 10: 'of no use'")


def test_a_pipe_that_nobody_reads_holds_up_nobody() -> None:
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor)
    for _ in range(MAX_WAITING + 5000):
        writer.emit(record("x" * 100))
    assert writer.lost > 0
    began = time.monotonic()
    writer.flush()
    assert time.monotonic() - began < 5
    os.close(reader)  # the thread's write fails, and it goes on to the next line
    writer.flush()
    assert threading.active_count() > 1


def test_a_full_disk_for_logs_stops_nothing(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    ready_file = tmp_path / "ready.json"
    command = [sys.executable, "-m", "stn_serve", "serve", "--model-repository", str(tmp_path), *FREE_PORTS]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [*command, "--log-level", "debug", "--ready-file", str(ready_file)], stdout=full, stderr=full
        )
    while not ready_file.exists():
        assert process.poll() is None
        time.sleep(0.02)
    addresses = json.loads(ready_file.read_text())
    body = orjson.dumps({"inputs": [TENSOR]})
    url = f"http://{addresses['http']}/v2/models/ident/infer"
    assert [urllib3.request("POST", url, body=body).status for _ in range(20)] == [200] * 20
    end, lost = time.monotonic() + 20, 0
    while lost < 20 and time.monotonic() < end:  # lines are written by a thread
        scraped = urllib3.request("GET", f"http://{addresses['metrics']}/metrics").data.decode()
        lost = int(re.findall(r"^stn_log_lines_lost_total (\d+)", scraped, re.MULTILINE)[0])
    process.terminate()
    assert process.wait(timeout=30) == 0
    assert lost >= 20
