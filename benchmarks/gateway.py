"""What a gateway adds to a request: the CPU time of its process.

python -m benchmarks.gateway 127.0.0.1:8001 digits

The Triton is to be running, with the model; the gateway is started here.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

ROWS = (1, 16)
REQUESTS, ROUNDS = 50, 5
RESULTS = Path(__file__).parent / "results" / "gateway.md"
PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


def main() -> None:
    """Measure, and write the table."""
    triton, model = sys.argv[1:3]
    with _gateway(triton) as (process, address):
        stub = _stub(address)
        lines = [_line(process, stub, _request(stub, model, rows)) for rows in ROWS]
    RESULTS.write_text(
        f"""# What a gateway adds

`python -m benchmarks.gateway TRITON {model}`, {datetime.now(UTC).date()}, {platform.machine()}. Tensors over gRPC,
one caller who asks one request after the other: median of {ROUNDS} rounds of {REQUESTS} and the spread between rounds.
CPU time of the gateway's process, its looks at Triton included, so that others on the machine matter little.

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
        began_us = _cpu_us(process)
        for _ in range(REQUESTS):
            stub.ModelInfer(request)
        rounds.append((_cpu_us(process) - began_us) / REQUESTS)
    spread = f"{min(rounds):.0f}-{max(rounds):.0f}"
    return f"| {request.ByteSize() / 1000:.0f} KB | {statistics.median(rounds):.0f} us ({spread}) |"


def _cpu_us(process: int) -> float:
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") * 1e6


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


@contextmanager
def _gateway(triton: str) -> Iterator[tuple[int, str]]:
    """Its process and its address."""
    with tempfile.TemporaryDirectory() as directory:
        ready = Path(directory) / "ready.json"
        command = [sys.executable, "-m", "stn_serve", "serve", "--engine", "triton", "--triton-url", triton, *PORTS]
        process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the gateway does not start")
                time.sleep(0.05)
            yield process.pid, json.loads(ready.read_text())["grpc"]
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
