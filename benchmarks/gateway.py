"""What a gateway adds to a request: the CPU time of its process, before a real Triton.

python -m benchmarks.gateway
"""

from __future__ import annotations

import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from benchmarks.peers.all import PEERS
from benchmarks.serving_models import MODELS
from stn_serve.machine import cpu_seconds
from stn_serve.server_process import ServerProcess

ROWS = (1, 16)
REQUESTS, ROUNDS = 500, 5
RESULTS = Path(__file__).parent / "results" / "gateway.md"


def main(model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "digits") -> None:
    """Measure, and write the table."""
    with TemporaryDirectory() as folder:
        workload = MODELS[model](Path(folder))
        with PEERS["triton"].serve(workload, Path(folder)) as triton:
            flags = ("--engine", "triton", "--triton-url", triton.addresses["grpc"])
            with ServerProcess(workload.directory.parent, *flags) as gateway:
                stub = _stub(gateway.grpc)
                lines = [_line(gateway.pid, stub, _request(stub, model, rows)) for rows in ROWS]
    RESULTS.write_text(
        f"""# What a gateway adds

`python -m benchmarks.gateway --model {model}`, {datetime.now(UTC).date()}, {platform.machine()}. Tensors over gRPC to
Triton 2.51, one caller who asks one request after the other: median of {ROUNDS} rounds of {REQUESTS} and the spread
between rounds. CPU time of the gateway's process, its looks at Triton included, so that others on the machine matter
little.

| request | CPU time |
|---:|---:|
"""
        + "\n".join(lines)
        + "\n"
    )
    print(RESULTS.read_text())


def _line(process: int, stub: Any, request: Any) -> str:  # noqa: ANN401 - no types
    rounds = []
    for _ in range(ROUNDS):
        began = cpu_seconds(process)
        for _ in range(REQUESTS):
            stub.ModelInfer(request)
        rounds.append((cpu_seconds(process) - began) * 1e6 / REQUESTS)
    spread = f"{min(rounds):.0f}-{max(rounds):.0f}"
    return f"| {request.ByteSize() / 1000:.0f} KB | {statistics.median(rounds):.0f} us ({spread}) |"


def _request(stub: Any, model: str, rows: int) -> Any:  # noqa: ANN401 - no types
    (tensor,) = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=model)).inputs
    shape = [rows, *list(tensor.shape)[1:]]
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    request.raw_input_contents.append(np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes())
    return request


def _stub(address: str) -> Any:  # noqa: ANN401 - no types
    limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return GRPCInferenceServiceStub(grpc.insecure_channel(address, limits))


if __name__ == "__main__":
    typer.run(main)
