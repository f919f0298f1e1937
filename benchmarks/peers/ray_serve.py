"""Ray Serve: `@serve.batch` without a delay, one replica, which computes with a thread for each CPU, no access log."""

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

PACKAGES = ("ray[serve]==2.60.0",)


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["python", str(APPS / "ray_app.py")]
    variables = {"PORT": str(port), "BATCH_TIMEOUT_S": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with app("ray", PACKAGES, command, workload, folder, f"{url}/-/healthz", variables) as process:
        yield Running(process, {}, {RAW_HTTP: Call(f"{url}/predict", workload.image.tobytes(), answers.logits)})


NOTE = "`@serve.batch` without a delay, one replica, no access log; HTTP, the image's bytes as they are"
PEER = Peer("ray", "Ray Serve 2.60", (RAW_HTTP,), NOTE, _serve)
