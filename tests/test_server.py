from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import urllib3
from numpy.typing import NDArray
from onnx_models import publish_ident, publish_slow
from served import Served, run_stn, running, start, stop
from tritonclient.utils import InferenceServerException

from stn_serve.errors import ConfigurationError
from stn_serve.settings import ServerSettings

FREE = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


def slow_input() -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    return tensor


def test_importing_the_server_loads_no_torch() -> None:
    probe = (
        "import sys, stn_serve.server, stn_serve.cli; "
        "print([name for name in ('torch', 'onnx', 'training', 'export', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", probe], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_it_announces_what_it_serves_and_ends_well(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    served = start(tmp_path)
    addresses = json.loads((tmp_path / "ready.json").read_text())
    assert sorted(addresses) == ["grpc", "http", "metrics"]
    assert urllib3.request("GET", f"http://{served.http}/v2/health/ready").status == 200
    code, output = stop(served)
    assert code == 0, output
    assert "ident" in output
    assert addresses["grpc"] in output
    assert "Traceback" not in output


def test_sigterm_answers_what_is_in_flight(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=40)
    served = start(tmp_path)
    answers: list[dict[str, object]] = []
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.async_infer("slow", [slow_input()], callback=lambda **outcome: answers.append(outcome))
        time.sleep(0.2)
        code, output = stop(served)
        assert code == 0, output
    assert [outcome["error"] for outcome in answers] == [None]
    assert isinstance(answers[0]["result"], tritonclient.grpc.InferResult)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=400)
    served = start(tmp_path)
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.async_infer("slow", [slow_input()], callback=lambda **_: None)
        time.sleep(0.2)
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert served.process.poll() is None
        served.process.send_signal(signal.SIGINT)
        served.process.communicate(timeout=20)
    assert served.process.returncode == 128 + signal.SIGINT


def pending(served: Served) -> int:
    metrics = urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()
    (count,) = re.findall(r'nv_inference_pending_request_count{model="slow",version="1"} (\d+)', metrics)
    return int(count)


async def cancel_one_of_three(served: Served) -> NDArray[np.float32]:
    async with tritonclient.grpc.aio.InferenceServerClient(served.grpc) as client:
        first, second, third = (asyncio.ensure_future(client.infer("slow", [slow_input()])) for _ in range(3))
        while await asyncio.to_thread(pending, served) < 2:  # the first runs, the others have arrived
            await asyncio.sleep(0.02)
        second.cancel()
        answers = await asyncio.gather(first, third)
        return np.stack([answer.as_numpy("y") for answer in answers])


def test_a_cancelled_call_is_counted_and_hurts_nobody(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=40)
    with running(tmp_path) as served:
        assert asyncio.run(cancel_one_of_three(served)).shape == (2, 1)
        metrics = urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()
    assert 'nv_inference_request_failure{model="slow",reason="CANCELED",version="1"} 1' in metrics
    assert 'nv_inference_request_success{model="slow",version="1"} 2' in metrics


def failures(served: Served, reason: str) -> int:
    metrics = urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()
    (count,) = re.findall(rf'nv_inference_request_failure{{model="slow",reason="{reason}",version="1"}} (\d+)', metrics)
    return int(count)


def test_a_caller_that_hangs_up_or_runs_out_of_time_leaves_the_queue(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=40)
    with running(tmp_path) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.async_infer("slow", [slow_input()], callback=lambda **_: None)
        host, _, port = served.http.partition(":")
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}'
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            time.sleep(0.1)
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
            client.infer("slow", [slow_input()], client_timeout=0.05)
        while failures(served, "CANCELED") < 2:
            time.sleep(0.02)


def test_the_newest_version_is_served_by_default(tmp_path: Path) -> None:
    config = "max_batch_size: 8 version_policy { all { } } %s"
    tensors = """input [{ name: "image" data_type: TYPE_FP32 dims: [1, 28, 28] }]
                 output [{ name: "logits" data_type: TYPE_FP32 dims: [10] }]"""
    publish_ident(tmp_path, config=config % tensors)
    publish_ident(tmp_path, config=config % tensors, version=12)
    with running(tmp_path) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        assert list(client.get_model_metadata("ident").versions) == ["1", "12"]
        assert list(client.get_model_metadata("ident", "1").versions) == ["1"]
        image = tritonclient.grpc.InferInput("image", [1, 1, 28, 28], "FP32")
        image.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
        assert client.infer("ident", [image]).get_response().model_version == "12"
        assert client.infer("ident", [image], model_version="1").get_response().model_version == "1"


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2
    assert result.stderr.startswith("stn: error: ")
    assert len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port", "--metrics-port"])
def test_a_port_in_use_ends_the_start(tmp_path: Path, flag: str) -> None:
    publish_ident(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = run_stn("serve", "--model-repository", str(tmp_path), *FREE, flag, port)
    assert_one_line_error(result, f"cannot listen on port {port} of 127.0.0.1: it is in use")


def test_a_repository_that_cannot_be_served_ends_the_start(tmp_path: Path) -> None:
    serve = ("serve", *FREE, "--model-repository")
    assert_one_line_error(run_stn(*serve, str(tmp_path / "nope")), "is not a directory")
    assert_one_line_error(run_stn(*serve, str(tmp_path)), "holds no model", "stn export")
    (tmp_path / "broken").mkdir()
    assert_one_line_error(run_stn(*serve, str(tmp_path)), "can be served", "model 'broken' has no config.pbtxt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"http_port": 70000}, "http_port is 70000, expected 0 to 65535"),
        ({"http_port": 8001}, "the ports must differ"),
        ({"max_message_bytes": 0}, "max_message_bytes is 0, expected 1 to"),
        ({"grace_s": -1.0}, "grace_s is -1.0, expected"),
    ],
)
def test_contradictory_settings_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerSettings(model_repository=Path(), **changes)  # type: ignore[arg-type]  # some are wrong on purpose
