"""`stn serve`, as it comes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.peers.open_inference import binary_calls
from benchmarks.peers.peer import (
    JPEG_GRPC,
    JPEG_HTTP,
    RAW_GRPC,
    RAW_HTTP,
    TENSOR_GRPC,
    TENSOR_HTTP,
    Call,
    Peer,
    Running,
    Way,
)
from benchmarks.peers.process import started
from benchmarks.peers.workload import Workload
from stn_serve.proto.image_prediction_pb2 import PredictRequest

ROOT = Path(__file__).parents[2]
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@contextmanager
def _serve(workload: Workload, folder: Path, workers: int) -> Iterator[Running]:
    shutil.copytree(workload.directory, folder / "repository" / workload.name)
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "stn_serve", "serve", "--model-repository", "repository", *FREE_PORTS]
    command += ["--ready-file", str(ready), "--workers", str(workers)]
    with started(command, folder / "stn.log", ready.exists, {"PYTHONPATH": str(ROOT)}) as process:
        found = json.loads(ready.read_text())
        calls = binary_calls(found["grpc"], found["http"], workload) | _image_calls(
            found["grpc"], found["http"], workload
        )
        yield Running(process, found, calls)


def _image_calls(grpc: str, http: str, workload: Workload) -> dict[Way, Call]:
    """An encoded image, with the typed image API."""
    request = PredictRequest(model_name=workload.name, images=[workload.jpeg])
    return {
        JPEG_GRPC: Call(f"http://{grpc}/stn.v1.ImagePrediction/Predict", request.SerializeToString()),
        JPEG_HTTP: Call(
            f"http://{http}/v1/models/{workload.name}/predict", workload.jpeg, headers={"content-type": "image/jpeg"}
        ),
    }


def peers() -> list[Peer]:
    """With one process, and with two."""
    ways = (TENSOR_GRPC, TENSOR_HTTP, RAW_GRPC, RAW_HTTP, JPEG_GRPC, JPEG_HTTP)
    return [
        Peer("stn", "stn serve", ways, partial(_serve, workers=1)),
        Peer("stn-2", "stn serve --workers 2", ways, partial(_serve, workers=2)),
    ]
