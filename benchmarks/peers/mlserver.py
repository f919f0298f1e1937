"""MLServer with a custom runtime and adaptive batching, which wants a delay.

Its HTTP takes JSON alone, and perf_analyzer does not speak to it, for want of `ModelConfig`: h2load does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import answers
from benchmarks.peers.open_inference import grpc_call
from benchmarks.peers.peer import RAW_GRPC, RAW_HTTP, Call, Peer, Running
from benchmarks.peers.process import free_ports
from benchmarks.peers.python_server import app
from benchmarks.peers.workload import Workload

PACKAGES = ("mlserver==1.7.1", "uvloop==0.21.0")  # its workers do not start with a newer uvloop
DELAY_S = 0.001


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:
    grpc, http, metrics = free_ports(3)
    ports = {"grpc_port": grpc, "http_port": http, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "debug": False, **ports}))
    batching = {"max_batch_size": workload.max_batch_size, "max_batch_time": DELAY_S}
    model = {"name": workload.name, "implementation": "mlserver_app.OnnxModel", **batching}
    (folder / "model-settings.json").write_text(json.dumps(model))
    url = f"http://127.0.0.1:{http}/v2"
    command = ["mlserver", "start", str(folder)]
    with app("mlserver", PACKAGES, command, workload, folder, f"{url}/models/{workload.name}/ready", {}) as process:
        address = f"127.0.0.1:{grpc}"
        call = Call(f"{url}/models/{workload.name}/infer", _json(workload), answers.tensor_logits, answers.JSON)
        yield Running(process, {"grpc": address}, {RAW_GRPC: grpc_call(address, workload), RAW_HTTP: call})


def _json(workload: Workload) -> bytes:
    shape = [1, *workload.image.shape]
    tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": workload.image.ravel().tolist()}
    return answers.body({"inputs": [tensor]})


NOTE = (
    "a custom runtime in its worker process, adaptive batching within 1 ms; perf_analyzer does not speak to it, for "
    "want of `ModelConfig`; its HTTP takes tensors as JSON"
)
PEER = Peer("mlserver", "MLServer 1.7.1", (RAW_GRPC, RAW_HTTP), NOTE, _serve)
