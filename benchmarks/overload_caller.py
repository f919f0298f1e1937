"""A caller of `benchmarks.overload`: `python -m benchmarks.overload_caller ADDRESS MODEL RATE SECONDS first|last`.

A process in a session of its own that stands for callers on other machines, which take no CPU of the server's. The
probe goes first: where it may, it is a real-time process and waits for no CPU, so that what it sees is the server. The
flood goes last: it takes what time of the CPUs the server leaves. Prints as JSON what became of its requests, the rate
that it reached, and whether the kernel gave it its place.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve.niceness import NICENESS
from stn_serve.repository import read_config

MODELS = Path(__file__).parents[1] / "model_repository"
ROWS = {"digits": 16, "house_numbers": 16, "birds": 1}
"""Images of a request."""
DEADLINE_S = 1.0


@dataclass
class Outcomes:
    """What became of requests, and after how long, in milliseconds."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    """Told that the queue is full, or its wait too long."""
    expired: int = 0
    """Refused when they had waited for too long."""
    late: int = 0
    """Neither answered nor refused by their deadline."""
    failed: int = 0
    """Anything else."""

    @property
    def count(self) -> int:
        """Requests altogether."""
        return self.accepted + len(self.refused) + self.failed

    @property
    def accepted(self) -> int:
        """Requests that were not refused at once; a late one may never have come before the server."""
        return len(self.answered) + self.expired + self.late


def build_request(model: str) -> Any:  # noqa: ANN401
    """Random images for a model."""
    shape = (ROWS[model], *read_config(MODELS / model).input[0].dims)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    return request


@asynccontextmanager
async def asking(address: str) -> AsyncIterator[Any]:
    """A stub for the time of a `with`."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def ask(stub: Any, request: Any, outcomes: Outcomes, timeout_s: float = DEADLINE_S) -> None:  # noqa: ANN401 - tritonclient has no types
    """One request, and what becomes of it."""
    started = time.perf_counter()
    try:
        await stub.ModelInfer(request, timeout=timeout_s)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE and _refused_at_once(error.details() or ""):
            outcomes.refused.append((time.perf_counter() - started) * 1e3)
        elif error.code() is grpc.StatusCode.UNAVAILABLE and "timeout expired" in (error.details() or ""):
            outcomes.expired += 1
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            outcomes.late += 1
        else:
            outcomes.failed += 1
    else:
        outcomes.answered.append((time.perf_counter() - started) * 1e3)


def _refused_at_once(details: str) -> bool:
    return "queue size" in details or "would wait" in details


async def send_steadily(stub: Any, request: Any, rate: float, seconds: float) -> Outcomes:  # noqa: ANN401
    """Send at a steady rate, whatever comes back."""
    outcomes, asked = Outcomes(), set[asyncio.Task[None]]()
    began = time.perf_counter()
    for number in range(max(1, round(rate * seconds))):
        await asyncio.sleep(max(0, began + number / rate - time.perf_counter()))
        call = asyncio.create_task(ask(stub, request, outcomes))
        asked.add(call)
        call.add_done_callback(asked.discard)
    await asyncio.gather(*asked)
    return outcomes


def go_first() -> bool:
    """Whether the kernel lets this process, and the threads that it starts, run before all that is not real-time."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except (AttributeError, OSError):
        return False
    return True


def go_last() -> bool:
    """Whether the session of this process gets what others leave of the CPUs, which Linux shares out among sessions.

    That is sched(7)'s autogroup; where there is none, the niceness of each process counts.
    """
    os.nice(NICENESS)
    try:
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    except OSError:
        return False
    return True


async def call(address: str, model: str, rate: float, seconds: float) -> tuple[Outcomes, float]:
    """Ask at a steady rate; returns what came of it, and the rate that was reached."""
    async with asking(address) as stub:
        began = time.perf_counter()
        outcomes = await send_steadily(stub, build_request(model), rate, seconds)
        return outcomes, outcomes.count / (time.perf_counter() - began)


if __name__ == "__main__":
    address, model, rate, seconds, place = sys.argv[1:]
    in_place = go_first() if place == "first" else go_last()
    outcomes, reached = uvloop.run(call(address, model, float(rate), float(seconds)))
    print(json.dumps({"outcomes": asdict(outcomes), "rate": reached, "is_in_place": in_place}))
