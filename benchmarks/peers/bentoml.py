"""BentoML: adaptive batching, one worker, which computes with a thread for each CPU, no access log."""

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

PACKAGES = ("bentoml==1.4.40",)
QUIET = {"BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false", "BENTOML_DO_NOT_TRACK": "true"}


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = ["bentoml", "serve", "bentoml_app:Model", "--working-dir", str(APPS)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    home = {"BENTOML_HOME": str(folder / "home")}
    with app("bentoml", PACKAGES, command, workload, folder, f"{url}/readyz", QUIET | home) as process:
        body = answers.body({"images": [answers.base64_image(workload)]})
        yield Running(process, {}, {RAW_HTTP: Call(f"{url}/predict", body, answers.logits, answers.JSON)})


NOTE = "adaptive batching, one worker, no access log; HTTP alone, the image's bytes as base64 in JSON"
PEER = Peer("bentoml", "BentoML 1.4.40", (RAW_HTTP,), NOTE, _serve)
