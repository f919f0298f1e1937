from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from onnx_models import publish_ident, publish_slow, publish_vision
from served import FREE_PORTS, Served, run_stn, running, start, stop

from stn_serve import Client
from stn_serve.errors import ServingError
from stn_serve.worker_process import REPORT_S

WHITE = np.full((20, 40), 255, np.uint8)
TWO = ("--workers", "2")
EXPLICIT = (*TWO, "--model-control-mode", "explicit", "--load-model", "*", "--allow-log-settings")
CONNECTIONS = 12
"""So many that each of two workers has some."""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two workers, whose clients may change them."""
    repository = tmp_path_factory.mktemp("workers")
    publish_vision(repository)
    publish_ident(repository)
    with running(repository, *EXPLICIT) as served:
        yield served


def workers(served: Served) -> list[int]:
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def counts(served: Served) -> dict[str, float]:
    """By name, of all labels together."""
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:{.*})? (\S+)$", httpx.get(f"http://{served.metrics}/metrics").text, re.M):
        found[name] = found.get(name, 0) + float(value)
    return found


def over_many_connections(served: Served, method: str, path: str, **content: object) -> list[httpx.Response]:
    """The same request, each time over a connection of its own."""
    url = f"http://{served.http}{path}"
    return [httpx.request(method, url, **content) for _ in range(CONNECTIONS)]  # type: ignore[arg-type]


def wait_for(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def test_all_workers_answer_and_their_counts_add_up(two: Served) -> None:
    before = counts(two)
    for address in (two.grpc, f"http://{two.http}"):
        for _ in range(CONNECTIONS):
            with Client(address) as stn:
                assert stn.predict(WHITE, model="vision").label == "bright"
    after = counts(two)
    assert after["nv_inference_request_success"] - before["nv_inference_request_success"] == 2 * CONNECTIONS
    assert after["stn_workers"] == 2
    statistics = over_many_connections(two, "GET", "/v2/models/vision/stats")
    totals = {answer.json()["model_stats"][0]["inference_stats"]["success"]["count"] for answer in statistics}
    assert totals == {after["nv_inference_request_success"]}


def test_a_change_reaches_every_worker(two: Served) -> None:
    infer = {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0] * 784}]}
    path = "/v2/models/ident/infer"
    assert httpx.post(f"http://{two.http}/v2/repository/models/ident/unload").status_code == 200
    assert {answer.status_code for answer in over_many_connections(two, "POST", path, json=infer)} == {404}
    with tritonclient.grpc.InferenceServerClient(two.grpc) as client:
        client.load_model("ident")
    assert {answer.status_code for answer in over_many_connections(two, "POST", path, json=infer)} == {200}
    httpx.post(f"http://{two.http}/v2/logging", json={"log_info": False})
    levels = over_many_connections(two, "GET", "/v2/logging")
    assert {answer.json()["log_info"] for answer in levels} == {False}


def test_a_change_that_every_worker_refuses_is_refused_with_its_reason(two: Served) -> None:
    answer = httpx.post(f"http://{two.http}/v2/repository/models/nope/load")
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        "failed to load 'nope', failed to poll from model repository",
    )


def test_a_worker_that_is_killed_is_replaced_and_follows_the_others(two: Served) -> None:
    httpx.post(f"http://{two.http}/v2/repository/models/ident/unload")
    with Client(two.grpc) as stn:
        stn.predict(WHITE, model="vision")
    before = counts(two)  # what has been shown must never fall
    killed = workers(two)[0]
    seen: list[dict[str, float]] = [before]
    failed, answered = [], 0
    os.kill(killed, signal.SIGKILL)
    while counts(two)["stn_worker_restarts_total"] == before["stn_worker_restarts_total"]:
        try:
            with Client(f"http://{two.http}", retries=3) as stn:
                assert stn.predict(WHITE, model="vision").label == "bright"
            answered += 1
        except ServingError as error:
            failed.append(error)
        seen.append(counts(two))
    assert answered > 0
    assert not failed
    counters = [name for name in before if name.startswith("nv_inference") and "pending" not in name]
    for earlier, later in itertools.pairwise(seen):
        assert all(later[name] >= earlier[name] for name in counters)
    assert killed not in workers(two)
    answers = over_many_connections(two, "GET", "/v2/models/ident/ready")
    assert {answer.status_code for answer in answers} == {400}, "the new one has unloaded it, too"
    httpx.post(f"http://{two.http}/v2/repository/models/ident/load")


def test_a_worker_serves_on_while_another_cannot_be_started(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    served = start(tmp_path, *TWO)
    (killed, other), supervisor = workers(served), served.process.pid
    allowed = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, allowed[1]))
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: workers(served) == [other])
    time.sleep(1)  # several tries
    assert served.process.poll() is None
    assert is_running(other)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, allowed)
    wait_for(lambda: len(workers(served)) == 2)
    with Client(served.grpc) as stn:
        assert stn.predict(WHITE, model="vision").label == "bright"
    code, output = stop(served)
    assert code == 0
    assert "a worker cannot be started: [Errno 24] Too many open files" in output


def slow_input() -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    return tensor


async def stop_under_load(served: Served, callers: int) -> tuple[int, list[str]]:
    """Callers that ask again and again until they are refused; the server is stopped meanwhile."""
    surprises: list[str] = []
    answered = 0

    async def ask() -> None:
        nonlocal answered
        async with tritonclient.grpc.aio.InferenceServerClient(served.grpc) as client:
            while True:
                try:
                    await client.infer("vision", [image])
                    answered += 1
                except tritonclient.grpc.InferenceServerException as error:
                    if error.status() != "StatusCode.UNAVAILABLE":
                        surprises.append(str(error))
                    return

    image = tritonclient.grpc.InferInput("image", [1, 8, 8, 1], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 8, 8, 1), np.uint8))
    load = asyncio.gather(*(ask() for _ in range(callers)))
    await asyncio.sleep(0.5)
    served.process.terminate()
    await load
    return answered, surprises


@pytest.mark.parametrize("flags", [(), TWO], ids=["one process", "two workers"])
def test_sigterm_under_load_answers_every_accepted_request(tmp_path: Path, flags: tuple[str, ...]) -> None:
    publish_vision(tmp_path)
    served = start(tmp_path, *flags)
    answered, surprises = asyncio.run(stop_under_load(served, 8))
    output, _ = served.process.communicate(timeout=30)
    assert answered > 0
    assert surprises == []
    assert served.process.returncode == 0, output


def test_sigterm_answers_what_is_in_flight_in_every_worker(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=4)
    served = start(tmp_path, *TWO)
    answers: list[dict[str, object]] = []
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        for _ in range(4):
            client.async_infer("slow", [slow_input()], callback=lambda **outcome: answers.append(outcome))
        wait_for(lambda: counts(served)["nv_inference_pending_request_count"])
        # As systemd does it: to every process of the service.
        for pid in workers(served):
            os.kill(pid, signal.SIGTERM)
        code, output = stop(served)
    assert code == 0, output
    assert [outcome["error"] for outcome in answers] == [None] * 4


def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=400)
    served = start(tmp_path, *TWO)
    children = workers(served)
    with tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        client.async_infer("slow", [slow_input()], callback=lambda **_: None)
        time.sleep(0.2)
        served.process.terminate()
        time.sleep(0.3)
        served.process.terminate()
        served.process.communicate(timeout=10)
    assert served.process.returncode == 128 + signal.SIGTERM
    wait_for(lambda: not any(map(is_running, children)))


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    served = start(tmp_path, *TWO)
    children = workers(served)
    served.process.kill()
    served.process.communicate(timeout=10)
    wait_for(lambda: not any(map(is_running, children)))


def test_workers_that_cannot_start_end_the_server(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    result = run_stn("serve", "--model-repository", str(tmp_path), *FREE_PORTS, *TWO)
    assert result.returncode == 2
    assert "can be served: model 'broken' has no config.pbtxt" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_stop_while_the_workers_load(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=12)
    command = [sys.executable, "-m", "stn_serve", "serve", "--model-repository", str(tmp_path), *FREE_PORTS, *TWO]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: children.read_text())
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_ports_are_not_shared_by_accident(two: Served) -> None:
    for address, flags in ((two.grpc, ()), (two.http, TWO)):
        number = address.rpartition(":")[2]
        result = run_stn("serve", *FREE_PORTS, "--http-port", number, *flags)
        assert result.returncode == 2
        assert result.stderr == f"stn: error: cannot listen on port {number} of 127.0.0.1: it is in use\n"


def open_sockets(pid: int) -> int:
    descriptors = Path(f"/proc/{pid}/fd").iterdir()
    return sum(str(descriptor.readlink()).startswith("socket:") for descriptor in descriptors)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_connections_are_spread_evenly_over_the_workers(two: Served, protocol: str) -> None:
    host, _, port = getattr(two, protocol).rpartition(":")
    time.sleep(1.5)  # a report of each worker: connections of other tests have ended
    before = {pid: open_sockets(pid) for pid in workers(two)}
    with contextlib.ExitStack() as held:
        for _ in range(6):
            held.enter_context(socket.create_connection((host, int(port))))
        wait_for(lambda: sum(map(open_sockets, before)) >= sum(before.values()) + 6)
        assert {pid: open_sockets(pid) - count for pid, count in before.items()} == dict.fromkeys(before, 3)


def test_a_worker_that_hangs_gets_no_new_connections(two: Served) -> None:
    hangs = workers(two)[0]
    os.kill(hangs, signal.SIGSTOP)
    try:
        time.sleep(REPORT_S + 1.5)  # it has not reported
        for _ in range(CONNECTIONS):
            assert httpx.get(f"http://{two.http}/v2/health/live", timeout=5).status_code == 200
    finally:
        os.kill(hangs, signal.SIGCONT)
