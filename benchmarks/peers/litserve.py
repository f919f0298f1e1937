"""LitServe: batches without a delay, one worker, which computes with a thread for each CPU, and its faster queue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import answers
from benchmarks.peers.environment import APPS
from benchmarks.peers.peer import RAW_HTTP, Call, Peer, Running
from benchmarks.peers.process import free_ports
from benchmarks.peers.python_server import app
from benchmarks.peers.workload import Workload

PACKAGES = ("litserve==0.2.19", "pyzmq")


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["python", str(APPS / "litserve_app.py")]
    variables = {"PORT": str(port), "BATCH_TIMEOUT_S": "0", "FAST_QUEUE": "1"}
    with app("litserve", PACKAGES, command, workload, folder, f"{url}/health", variables) as process:
        body = answers.body({"image": answers.base64_image(workload)})
        call = Call(f"{url}/predict", body, answers.logits, answers.JSON)
        yield Running(process, {}, {RAW_HTTP: call})


NOTE = "batches without a delay, one worker, its faster queue; HTTP alone, the image's bytes as base64 in JSON"
PEER = Peer("litserve", "LitServe 0.2.19", (RAW_HTTP,), NOTE, _serve)
