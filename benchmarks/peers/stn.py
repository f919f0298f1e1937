"""`stn serve`, as it comes."""

from __future__ import annotations

import shutil
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
    Unavailable,
    Way,
)
from benchmarks.peers.workload import Workload
from stn_serve.proto.image_prediction_pb2 import PredictRequest
from stn_serve.server_process import ServerProcess, ServerProcessError


@contextmanager
def _serve(workload: Workload, folder: Path, workers: int) -> Iterator[Running]:
    repository = folder / "repository"
    shutil.copytree(workload.directory, repository / workload.name)
    try:
        with ServerProcess(repository, "--workers", str(workers)) as server:
            calls = binary_calls(server.grpc, server.http, workload) | _image_calls(server.grpc, server.http, workload)
            yield Running(server.pid, {"grpc": server.grpc, "http": server.http}, calls)
    except ServerProcessError as reason:
        raise Unavailable(str(reason)) from reason


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
    note = "as it comes, with the model's own `config.pbtxt`"
    return [
        Peer("stn", "stn serve", ways, note, partial(_serve, workers=1)),
        Peer("stn-2", "stn serve --workers 2", ways, note, partial(_serve, workers=2)),
    ]
