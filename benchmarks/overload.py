"""What a server does at ten times its capacity: who is refused, how fast, who is answered, and what its memory does.

    python -m benchmarks.overload
    python -m benchmarks.overload --model digits --seconds 10 --output /dev/stdout

For each model, starts `stn serve` with the shipped models and finds its capacity: so many requests a second are
answered to 8 callers that each wait for their answer. Then it starts the server again with a queue of as many requests
as it can answer in half a second, which is also how long one may wait, as an operator would size it. A flood of
requests comes over gRPC at a steady rate of ten times the capacity, whether or not earlier ones have been answered,
each with a deadline of a second. Callers on other machines would take no CPU of the server's and not wait for one:
here, the flood is a process that takes what the server leaves, and so it sees itself late; what the server does is seen
by a probe, a caller that sends fifty requests a second and that, where it is allowed to, goes before everything else.
The tables go to benchmarks/results/overload.md.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import typer
import uvloop
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelQueuePolicy

from benchmarks.memory import resident_mib
from benchmarks.overload_caller import DEADLINE_S, MODELS, ROWS, Outcomes, ask, asking, build_request
from stn_serve.limits import available_cpus
from stn_serve.repository import read_config
from stn_serve.server_process import ServerProcess

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "overload.md"
CALLERS = 8
PROBES_PER_S = 50
QUEUED_S = DEADLINE_S / 2
"""What the queue holds is answered in this time."""
PATIENCE_S = 60.0
OVERLOAD = 10
WARM_UP_S = 1.0
CAPACITY_S = 5.0


@contextmanager
def serving(model: str, queue: ModelQueuePolicy) -> Iterator[ServerProcess]:
    """A server of the shipped models, one with a queue like this, for the time of a `with`."""
    with TemporaryDirectory() as folder:
        shutil.copytree(MODELS, folder, dirs_exist_ok=True)
        config = read_config(MODELS / model)
        config.dynamic_batching.default_queue_policy.CopyFrom(queue)
        (Path(folder) / model / "config.pbtxt").write_text(text_format.MessageToString(config))
        with ServerProcess(Path(folder), "--log-level", "error") as server:
            yield server


async def find_capacity(stub: Any, request: Any, seconds: float) -> float:  # noqa: ANN401
    """Requests a second that callers who wait for their answers get."""
    outcomes, began = Outcomes(), time.perf_counter()

    async def call() -> None:
        while time.perf_counter() < began + seconds:
            await ask(stub, request, outcomes, PATIENCE_S)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return len(outcomes.answered) / (time.perf_counter() - began)


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


class Seen(NamedTuple):
    """By a process that calls."""

    outcomes: Outcomes
    rate: float
    is_in_place: bool
    """Whether the kernel let it go first, or last."""


async def call(address: str, model: str, rate: float, seconds: float, place: Literal["first", "last"]) -> Seen:
    """Send at a steady rate, from a process of its own."""
    command = (sys.executable, "-m", "benchmarks.overload_caller", address, model, str(rate), str(seconds), place)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, cwd=ROOT, start_new_session=True)
    output, _ = await process.communicate()
    seen = json.loads(output)
    return Seen(Outcomes(**seen["outcomes"]), seen["rate"], seen["is_in_place"])


@dataclass
class Measurement:
    """Capacity is requests a second."""

    model: str
    capacity: float
    queue: int
    flood: Seen
    probe: Seen
    samples: list[Sample]


async def measure(model: str, seconds: float, factor: float) -> Measurement:
    """Find the capacity, and exceed it."""
    request = build_request(model)
    with serving(model, ModelQueuePolicy(max_queue_size=CALLERS)) as server:
        async with asking(server.grpc) as stub:
            await find_capacity(stub, request, WARM_UP_S)
            capacity = await find_capacity(stub, request, CAPACITY_S)
    queue = max(1, round(capacity * QUEUED_S))
    policy = ModelQueuePolicy(max_queue_size=queue, default_timeout_microseconds=round(QUEUED_S * 1e6))
    with serving(model, policy) as server:
        async with asking(server.grpc) as stub:
            await find_capacity(stub, request, WARM_UP_S)
        samples: list[Sample] = []
        watching = asyncio.create_task(watch(server.pid, samples))
        flood, probe = await asyncio.gather(
            call(server.grpc, model, factor * capacity, seconds, "last"),
            call(server.grpc, model, PROBES_PER_S, seconds, "first"),
        )
        watching.cancel()
    return Measurement(model, capacity, queue, flood, probe, samples)


def render(command: str, note: str, measured: Sequence[Measurement]) -> str:
    """The tables."""
    machine = f"{available_cpus()} CPUs of a {platform.machine()} machine that the callers share"
    date = datetime.now(UTC).date().isoformat()
    head = f"# Overload\n\n`{command}`, {date}, {machine}.{f' {note}' if note else ''}\n"
    return "\n".join([head, *map(render_model, measured)])


def render_model(measured: Measurement) -> str:
    """The table of one model."""
    outcomes, probed, samples = measured.flood.outcomes, measured.probe.outcomes, measured.samples
    settled = np.array(samples[len(samples) // 2 :])
    slope = np.polyfit(settled[:, 0] - settled[0, 0], settled[:, 1], 1)[0] * 60
    resident = [sample.resident_mib for sample in samples]
    first, last = samples[0], samples[-1]
    probe = "the probe (a real-time process)" if measured.probe.is_in_place else "the probe"
    flood = "the flood (nicer than the server)" if measured.flood.is_in_place else "the flood"
    sizes = f"{resident[0]:.0f} MiB at its start, {max(resident):.0f} MiB at most, {resident[-1]:.0f} MiB at its end"
    rows = {
        f"capacity, {CALLERS} callers that wait for their answers": f"{measured.capacity:.1f} requests/s",
        "offered": f"{measured.flood.rate:.1f} requests/s, {measured.flood.rate / measured.capacity:.1f} times as many",
        "requests": f"{outcomes.count}",
        "refused at once": f"{len(outcomes.refused)}",
        "accepted": f"{outcomes.accepted}",
        "of these answered within their deadline": f"{len(outcomes.answered)} ({_answered_percent(outcomes)})",
        "of these refused when their time in the queue was up": f"{outcomes.expired}",
        "of these not answered by their deadline": f"{outcomes.late}",
        "failed otherwise": f"{outcomes.failed}",
        f"latency of a refusal, as {flood} sees it": _quantiles(outcomes.refused),
        f"as {probe} sees it, in {len(probed.refused)} of {probed.count} requests": _quantiles(probed.refused),
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
