"""A server left alone under load: does its memory grow, does it ever fail?

    python -m benchmarks.soak                          # an hour at 70 % of what it can do
    python -m benchmarks.soak --minutes 2 --workers 2

Starts a real `stn serve` with the shipped models, finds out how many requests a second it answers at most, fills its
queue once and asks for batches of all sizes, so that its memory is as high as they take it. Then sends that share of
requests: images and tensors, over gRPC and HTTP, at random moments that do not wait for answers. Reports how fast the
server's resident memory grows (a straight line through the samples after the warm-up), failures, latencies, and whether
the server has counted what was sent, in benchmarks/results/soak.md.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer

from benchmarks.memory import resident_mib
from stn_serve import AsyncClient
from stn_serve.errors import ServingError
from stn_serve.image_sources import encode
from stn_serve.server_process import ServerProcess

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "soak.md"
CALLERS = 16
"""That ask without a pause, to find what the server can do."""
QUEUE = 1024
"""Requests that wait at most, of the shipped models."""
LARGEST_BATCH, BATCHES = 64, 1000
SAMPLE_S = 1.0
WARM_UP = 0.2
"""Share of the time after which memory counts: buffers and arenas have found their sizes."""
MOST_IN_FLIGHT = 2000
"""More that wait at the same time are failures: the server does not keep up."""

Ask = Callable[[], Awaitable[object]]


@dataclass
class Outcome:
    """What came of the load."""

    latencies_ms: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, and mebibytes."""


def requests(clients: list[AsyncClient]) -> Iterator[Ask]:
    """Images and tensors in turn, over each connection in turn."""
    digits = np.random.default_rng(0).integers(0, 256, (16, 42, 42, 1), np.uint8)
    images = [encode(digit[:, :, 0]) for digit in digits]
    for number, client in enumerate(itertools.cycle(clients)):
        chosen = number // len(clients) % len(images)
        if number % 2:
            yield lambda client=client, image=images[chosen]: client.predict(image, model="digits")  # type: ignore[misc]
        else:
            rows = {"image": digits[chosen : chosen + 1]}
            yield lambda client=client, rows=rows: client.infer("digits", rows)  # type: ignore[misc]


async def ask(request: Ask, outcome: Outcome) -> None:
    """One request, measured."""
    began = time.perf_counter()
    try:
        await request()
    except ServingError as error:
        outcome.failures[f"{type(error).__name__}: {error}"[:120]] += 1
    else:
        outcome.latencies_ms.append((time.perf_counter() - began) * 1000)


async def find_capacity(source: Iterator[Ask], seconds: float) -> float:
    """Requests a second that are answered when `CALLERS` ask without a pause."""
    outcome = Outcome()

    async def ask_until(end: float) -> None:
        while time.monotonic() < end:
            await ask(next(source), outcome)

    began = time.monotonic()
    await asyncio.gather(*(ask_until(began + seconds) for _ in range(CALLERS)))
    return len(outcome.latencies_ms) / (time.monotonic() - began)


async def reach_high_water(client: AsyncClient, source: Iterator[Ask]) -> None:
    """Take the memory that the server will keep, so that it does not look like growth.

    That is what as many requests as may wait need, and what ONNX Runtime's arena needs for batches of all sizes: it
    grows for some hundreds of them, in whatever order they come.
    """
    await asyncio.gather(*(ask(next(source), Outcome()) for _ in range(QUEUE)))
    chance = np.random.default_rng(0)
    for rows in chance.integers(1, LARGEST_BATCH + 1, BATCHES).tolist():
        await client.infer("digits", {"image": chance.integers(0, 256, (rows, 42, 42, 1), np.uint8)})


async def load(process: int, source: Iterator[Ask], rate: float, seconds: float) -> Outcome:
    """Requests at random moments, `rate` a second on average, whatever becomes of those before them."""
    outcome, chance = Outcome(), random.Random(0)  # noqa: S311 - no secret
    in_flight: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    due, sampled = began, began
    while (now := time.monotonic()) < began + seconds:
        if now >= sampled:
            outcome.memory.append((now - began, resident_mib(process)))
            sampled += SAMPLE_S
        if len(in_flight) > MOST_IN_FLIGHT:
            outcome.failures["not sent: too many wait"] += 1
        else:
            task = asyncio.create_task(ask(next(source), outcome))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        due += chance.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.gather(*in_flight)
    return outcome


def slope_mib_per_hour(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """Of a straight line through the samples after the warm-up, and its standard error.

    Neighbouring samples resemble each other, so the error is a lower bound.
    """
    settled = [sample for sample in memory if sample[0] >= WARM_UP * memory[-1][0]]
    hours, mebibytes = np.array(settled).T
    hours = hours / 3600
    slope, intercept = statistics.linear_regression(hours, mebibytes)
    residuals = mebibytes - (slope * hours + intercept)
    error = np.sqrt(np.sum(residuals**2) / (len(hours) - 2) / np.sum((hours - hours.mean()) ** 2))
    return slope, float(error)


def answered(metrics: str) -> int:
    """What the server has counted as answered."""
    text = httpx.get(f"http://{metrics}/metrics").text
    return sum(int(count) for count in re.findall(r"^nv_inference_request_success{.*} (\d+)$", text, re.MULTILINE))


def report(outcome: Outcome, counted: int, capacity: float, command: str, workers: int) -> str:
    """The results as Markdown."""
    slope, error = slope_mib_per_hour(outcome.memory)
    settled = [mb for second, mb in outcome.memory if second >= WARM_UP * outcome.memory[-1][0]]
    percentiles = np.percentile(outcome.latencies_ms, (50, 90, 99, 99.9)).tolist()
    failed = "".join(f"\n- {count} times: {text}" for text, count in outcome.failures.most_common())
    seconds, sent = outcome.memory[-1][0], len(outcome.latencies_ms) + sum(outcome.failures.values())
    cpus = len(os.sched_getaffinity(0))
    return f"""# A server left alone under load

`{command}`, {datetime.now(UTC).date()}, {cpus} CPU(s) of {platform.machine()} for server ({workers} process(es)) and
callers together. Images and tensors for the shipped model, over gRPC and HTTP.

| | |
|---|---:|
| capacity, {CALLERS} callers without a pause | {capacity:.0f} requests/s |
| sent | {sent}, {sent / seconds:.0f} requests/s |
| answered | {len(outcome.latencies_ms)} |
| counted by the server | {counted} |
| failed | {sum(outcome.failures.values())} |
| duration | {seconds / 60:.1f} minutes |
| resident memory after the warm-up | {min(settled):.1f} to {max(settled):.1f} MiB |
| its slope after the warm-up | {slope:+.2f} MiB/h (standard error {error:.2f}) |
| latency, median | {percentiles[0]:.1f} ms |
| latency, 90 %, 99 %, 99.9 % | {percentiles[1]:.1f}, {percentiles[2]:.1f}, {percentiles[3]:.1f} ms |
{failed}
"""


async def soak(minutes: float, share: float, workers: int, capacity_s: float) -> str:
    """The whole of it; returns the report."""
    flags = ("--workers", str(workers), "--log-level", "warning")
    with ServerProcess(ROOT / "model_repository", *flags) as server:
        # One connection belongs to one worker: each gets some.
        places = (server.grpc, f"http://{server.http}") * 2
        clients = [AsyncClient(place, retries=0, timeout_s=30) for place in places]
        source = requests(clients)
        capacity = await find_capacity(source, capacity_s)
        await reach_high_water(clients[0], source)
        before = answered(server.metrics)
        print(f"capacity {capacity:.0f} requests/s; now {share * capacity:.0f} requests/s for {minutes:g} minutes")
        outcome = await load(server.pid, source, share * capacity, minutes * 60)
        counted = answered(server.metrics) - before
        for client in clients:
            await client.close()
    command = f"python -m benchmarks.soak --minutes {minutes:g} --load {share:g} --workers {workers}"
    return report(outcome, counted, capacity, command, workers)


def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long the load lasts.")] = 60,
    load: Annotated[float, typer.Option(min=0.01, max=1, help="Share of the capacity that is sent.")] = 0.7,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the server.")] = 1,
    capacity_s: Annotated[float, typer.Option(min=1, help="Seconds to find the capacity in.")] = 20,
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS,
) -> None:
    """Load a server for a long time, and see whether its memory grows and whether it fails.

    For example:

        python -m benchmarks.soak

        python -m benchmarks.soak --minutes 2 --output /dev/stdout
    """
    text = asyncio.run(soak(minutes, load, workers, capacity_s))
    output.write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
