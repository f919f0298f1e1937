"""What a server does at ten times its capacity: who is refused, how fast, who is answered, and what its memory does.

    python -m benchmarks.overload
    python -m benchmarks.overload --model digits --seconds 10 --output /dev/stdout

For each model, starts `stn serve` with it alone and finds its capacity: so many requests a second are answered to 8
callers that each wait for their answer. Then it starts the server again with a queue of as many requests as it can
answer in half a second, which is also how long one may wait, as an operator would size it. A flood of requests comes
over gRPC at a steady rate of ten times the capacity, whether or not earlier ones have been answered, each with a
deadline of a second. The flood has the server's CPUs to share, and so it sees itself late; what the server does is seen
by a probe, a caller that sends fifty requests a second and that, where it is allowed to, waits for no CPU, as callers
on other machines do not. The tables go to benchmarks/results/overload.md.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import grpc
import numpy as np
import typer
import uvloop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.memory import resident_mib
from stn_serve.limits import available_cpus
from stn_serve.repository import read_config
from stn_serve.server_process import ServerProcess

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "model_repository"
RESULTS = Path(__file__).parent / "results" / "overload.md"
ROWS = {"digits": 16, "house_numbers": 16, "birds": 1}
"""Images of a request."""
CALLERS = 8
PROBES_PER_S = 50
DEADLINE_S = 1.0
QUEUED_S = DEADLINE_S / 2
"""What the queue holds is answered in this time."""
PATIENCE_S = 60.0
OVERLOAD = 10
WARM_UP_S = 1.0
CAPACITY_S = 5.0


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


@contextmanager
def serving(model: str, queue: str) -> Iterator[ServerProcess]:
    """A server of one model, whose queue it bounds, for the time of a `with`."""
    with TemporaryDirectory() as folder:
        shutil.copytree(MODELS / model, Path(folder) / model)
        config = Path(folder) / model / "config.pbtxt"
        config.write_text(config.read_text().replace("max_queue_size: 1024", queue))
        with ServerProcess(Path(folder), "--log-level", "error") as server:
            yield server


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


async def find_capacity(stub: Any, request: Any, seconds: float) -> float:  # noqa: ANN401
    """Requests a second that callers who wait for their answers get."""
    outcomes, began = Outcomes(), time.perf_counter()

    async def call() -> None:
        while time.perf_counter() < began + seconds:
            await ask(stub, request, outcomes, PATIENCE_S)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return len(outcomes.answered) / (time.perf_counter() - began)


async def flood(stub: Any, request: Any, rate: float, seconds: float) -> Outcomes:  # noqa: ANN401
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


async def probe(address: str, model: str, seconds: float) -> tuple[Outcomes, bool]:
    """Send a few requests beside the flood, from a process in a session of its own; also, whether a real-time one."""
    command = (sys.executable, "-m", "benchmarks.overload_probe", address, model, str(seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT, start_new_session=True)
    output, _ = await process.communicate()
    seen = json.loads(output)
    return Outcomes(**seen["outcomes"]), seen["is_real_time"]


def build_request(model: str) -> Any:  # noqa: ANN401
    """Random images for a model."""
    shape = (ROWS[model], *read_config(MODELS / model).input[0].dims)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    return request


class Sample(NamedTuple):
    """What Linux tells of the server."""

    seconds: float
    resident_mib: float
    ran_s: float
    """CPU time of its first thread, which runs the event loop."""
    waited_s: float
    """How long that thread was ready to run, and had no CPU."""


async def watch(process: int, samples: list[Sample]) -> None:
    """A sample twice a second, for ever."""
    schedule = Path(f"/proc/{process}/schedstat")
    while True:
        ran, waited, _ = (int(number) for number in schedule.read_text().split())
        samples.append(Sample(time.perf_counter(), resident_mib(process), ran / 1e9, waited / 1e9))
        await asyncio.sleep(0.5)


@dataclass
class Measurement:
    """Rates are requests a second."""

    model: str
    capacity: float
    queue: int
    offered: float
    outcomes: Outcomes
    probed: Outcomes
    is_probe_real_time: bool
    samples: list[Sample]


@asynccontextmanager
async def asking(address: str) -> AsyncIterator[Any]:
    """A stub for the time of a `with`."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def measure(model: str, seconds: float, factor: float) -> Measurement:
    """Find the capacity, and exceed it."""
    request = build_request(model)
    with serving(model, f"max_queue_size: {CALLERS}") as server:
        async with asking(server.grpc) as stub:
            await find_capacity(stub, request, WARM_UP_S)
            capacity = await find_capacity(stub, request, CAPACITY_S)
    queue = max(1, round(capacity * QUEUED_S))
    policy = f"max_queue_size: {queue} default_timeout_microseconds: {round(QUEUED_S * 1e6)}"
    with serving(model, policy) as server:
        async with asking(server.grpc) as stub:
            await find_capacity(stub, request, WARM_UP_S)
            samples: list[Sample] = []
            watching = asyncio.create_task(watch(server.pid, samples))
            probing = asyncio.create_task(probe(server.grpc, model, seconds))
            began = time.perf_counter()
            outcomes = await flood(stub, request, factor * capacity, seconds)
            offered = outcomes.count / (time.perf_counter() - began)
            probed, is_real_time = await probing
            watching.cancel()
    return Measurement(model, capacity, queue, offered, outcomes, probed, is_real_time, samples)


def render(command: str, note: str, measured: Sequence[Measurement]) -> str:
    """The tables."""
    machine = f"{available_cpus()} CPUs of a {platform.machine()} machine that the callers share"
    date = datetime.now(UTC).date().isoformat()
    head = f"# Overload\n\n`{command}`, {date}, {machine}.{f' {note}' if note else ''}\n"
    return "\n".join([head, *map(render_model, measured)])


def render_model(measured: Measurement) -> str:
    """The table of one model."""
    outcomes, probed, samples = measured.outcomes, measured.probed, measured.samples
    settled = np.array(samples[len(samples) // 2 :])
    slope = np.polyfit(settled[:, 0] - settled[0, 0], settled[:, 1], 1)[0] * 60
    resident = [sample.resident_mib for sample in samples]
    first, last = samples[0], samples[-1]
    real_time = " (a real-time process)" if measured.is_probe_real_time else ""
    sizes = f"{resident[0]:.0f} MiB at its start, {max(resident):.0f} MiB at most, {resident[-1]:.0f} MiB at its end"
    rows = {
        f"capacity, {CALLERS} callers that wait for their answers": f"{measured.capacity:.1f} requests/s",
        "offered": f"{measured.offered:.1f} requests/s, {measured.offered / measured.capacity:.1f} times as many",
        "requests": f"{outcomes.count}",
        "refused at once": f"{len(outcomes.refused)}",
        "accepted": f"{outcomes.accepted}",
        "of these answered within their deadline": f"{len(outcomes.answered)} ({_answered_percent(outcomes)})",
        "of these refused when their time in the queue was up": f"{outcomes.expired}",
        "of these not answered by their deadline": f"{outcomes.late}",
        "failed otherwise": f"{outcomes.failed}",
        "latency of a refusal, as the flood sees it": _quantiles(outcomes.refused),
        f"as the probe sees it{real_time}, in {len(probed.refused)} of {probed.count} requests": _quantiles(
            probed.refused
        ),
        "latency of an answer, as the flood sees it": _quantiles(outcomes.answered),
        f"as the probe sees it, in {len(probed.answered)} of {probed.accepted} that were accepted": _quantiles(
            probed.answered
        ),
        "resident memory of the server": sizes,
        "its slope over the second half": f"{slope:+.2f} MiB/min",
        "its event loop had a CPU, and waited for one": (
            f"{last.ran_s - first.ran_s:.1f} s, {last.waited_s - first.waited_s:.1f} s"
        ),
    }
    table = "\n".join(f"| {what} | {value} |" for what, value in rows.items())
    return f"""## {measured.model}

Requests of {ROWS[measured.model]} images, a queue of {measured.queue} requests, a deadline of {DEADLINE_S:g} s.

| | |
|---|---:|
{table}
"""


def _answered_percent(outcomes: Outcomes) -> str:
    return f"{len(outcomes.answered) / outcomes.accepted:.2%}" if outcomes.accepted else "none"


def _quantiles(milliseconds: list[float]) -> str:
    if not milliseconds:
        return "none"
    median, most, high = np.percentile(milliseconds, [50, 90, 99])
    return f"median {median:.1f} ms, p90 {most:.1f} ms, p99 {high:.1f} ms, at most {max(milliseconds):.1f} ms"


def main(
    model: Annotated[list[str], typer.Option(help="A shipped model; can be repeated.")] = list(ROWS),  # noqa: B006
    seconds: Annotated[float, typer.Option(min=1, help="How long the overload lasts.")] = 60.0,
    factor: Annotated[float, typer.Option(min=0.1, help="Times the capacity that is offered.")] = OVERLOAD,
    note: Annotated[str, typer.Option(help="A sentence about the machine, for the results.")] = "",
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Overload a server, and write down what it does.

    For example:

        python -m benchmarks.overload --model digits --seconds 10 --output overload.md
    """
    command = f"python -m benchmarks.overload --seconds {seconds:g} --factor {factor:g}"
    table = render(command, note, [uvloop.run(measure(name, seconds, factor)) for name in model])
    output.write_text(table)
    print(table)


if __name__ == "__main__":
    typer.run(main)
