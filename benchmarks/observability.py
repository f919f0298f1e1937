"""What it costs to count, log and trace every request, in CPU time.

    python -m benchmarks.observability

Writes benchmarks/results/observability.md. Measured is the CPU time of the process with all of its threads, which other
processes hardly change, not the time on the clock. Whole requests of one row go through a served model on one event
loop, from the call that a transport opens to its end, eight at a time, with and without what is compared in
alternating rounds; the model is `model_repository/digits`.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from stn_serve import calls
from stn_serve.compute import ComputePool
from stn_serve.limits import available_cpus
from stn_serve.metadata import ControlGrid, InputImage, ModelMetadata, Transformer, TransformKind
from stn_serve.model_files import model_files, version_files
from stn_serve.poses import control_points
from stn_serve.prediction_statistics import PredictionStatistics
from stn_serve.repository import read_config, served_versions
from stn_serve.served_model import ServedModel, Shared
from stn_serve.statistics import Phases, Statistics
from stn_serve.tracing import Tracing
from stn_serve.validation import ValidRequest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "observability.md"
AT_ONCE = 8
ROWS = 4096
REQUESTS = 1024
PARENT = (("traceparent", f"00-{7:032x}-{7:016x}-01"),)
THETAS: dict[TransformKind, tuple[int, int]] = {
    "affine": (2, 3),
    "projective": (3, 3),
    "thin_plate_spline": (16, 2),
    "affine_3d": (3, 4),
}

Work = Callable[[], object]


class Nowhere(SpanExporter):
    """Spans are made and handed over, and go no further."""

    def export(self, _: object) -> SpanExportResult:
        """Take them."""
        return SpanExportResult.SUCCESS


def compare(works: dict[str, Work], each: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU time of one of the `each` that a work does, by round; all take turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            taken[name].append((time.process_time() - began) * 1e6 / each)
    return {name: values[1:] for name, values in taken.items()}  # the first round warms up


def counting(kind: TransformKind, batch: int, classes: int = 10) -> Work:
    """Note and count answers of a model with one transformer, in requests of `batch` rows."""
    random = np.random.default_rng(0)
    grid = control_points(4) if kind == "thin_plate_spline" else np.eye(*THETAS[kind])
    theta = (grid + 0.1 * random.standard_normal((batch, 1, *THETAS[kind]))).astype(np.float32)
    outputs = {"theta": theta, "logits": random.standard_normal((batch, classes)).astype(np.float32)}
    statistics = PredictionStatistics(
        ModelMetadata(
            task="classification",
            labels=tuple(f"class_{number}" for number in range(classes)),
            input=InputImage(height=42, width=42, color="gray"),
            transform=kind,
            transformers=(Transformer(name="look", place="image", output_size=(28, 28)),),
            control_grid=ControlGrid(size=4) if kind == "thin_plate_spline" else None,
        )
    )

    def work() -> None:
        for _ in range(ROWS // batch):
            statistics.note(outputs)
        statistics.count()

    return work


def recording() -> Work:
    """Triton's counters and the histograms of answered requests."""
    statistics, phases = Statistics(), Phases(10_000, 500_000, 5_000)

    def work() -> None:
        for _ in range(ROWS):
            statistics.record_success(1, 600_000, 50_000, phases)

    return work


def load(count_predictions: bool) -> ServedModel:
    """The model that ships."""
    directory = ROOT / "model_repository" / "digits"
    config = read_config(directory)
    version = max(served_versions(directory, config))
    shared = Shared(ComputePool(available_cpus()), count_predictions)
    return ServedModel.load(directory, version, config, version_files(model_files(directory), version), shared)


async def serve(served: ServedModel, sink: calls.Sink | None) -> None:
    """Ask `REQUESTS` times, `AT_ONCE` side by side."""
    calls.trace_with(sink)
    row = np.zeros((1, *served.model.inputs[0].dims), np.uint8)
    asked = ValidRequest({"image": row}, ("logits", "theta"), 1)

    async def ask() -> None:
        for _ in range(REQUESTS // AT_ONCE):
            with calls.Call("grpc", "ModelInfer", lambda: PARENT), served.request() as request:
                calls.note("digits", "1", "42")
                await request.run(asked)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(ask())
    if served.predictions:
        served.predictions.count()


def serving(runner: asyncio.Runner) -> dict[str, Work]:
    """Whole requests, without anything of it, as by default, and traced."""
    bare, counted = load(count_predictions=False), load(count_predictions=True)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracing = Tracing(provider)
    asked = {
        "without prediction metrics": partial(serve, bare, None),
        "with them (the default)": partial(serve, counted, None),
        "with them and tracing": partial(serve, counted, tracing.record),
    }
    return {name: partial(_run, runner, ask) for name, ask in asked.items()}


def _run(runner: asyncio.Runner, ask: Callable[[], Coroutine[None, None, None]]) -> None:
    runner.run(ask())


def cell(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main(rounds: Annotated[int, typer.Option(help="Of each measurement.")] = 9) -> None:
    """Measure everything, and write the page."""
    works = {
        f"{kind}, requests of {batch} row{'s' * (batch > 1)}": counting(kind, batch)
        for kind in THETAS
        for batch in (1, 8)
    }
    works["affine, 1000 classes, requests of 8 rows"] = counting("affine", 8, 1000)
    counted = compare(works, ROWS, rounds)
    recorded = compare({"": recording()}, ROWS, rounds)[""]
    with asyncio.Runner() as runner:
        served = compare(serving(runner), REQUESTS, rounds)
    without = served["without prediction metrics"]
    heading = (
        f"`python -m benchmarks.observability --rounds {rounds}`, {datetime.now(UTC):%Y-%m-%d}, {available_cpus()} "
        f"CPUs ({platform.machine()}). Microseconds of CPU time, all threads of the process: median of {rounds} "
        "alternating rounds, in brackets the lowest and the highest. Other work ran on the machine meanwhile."
    )
    lines = [
        "# What observability costs",
        "",
        heading,
        "",
        "## A row whose pose, class and confidence are counted",
        "",
        "| | µs a row |",
        "|---|---:|",
        *(f"| {name} | {cell(values)} |" for name, values in counted.items()),
        "",
        f"Triton's counters and the five histograms take {cell(recorded)} µs for each request.",
        "",
        "## Whole requests of one row to `digits`, 8 at a time, without transport",
        "",
        "| | µs a request | against the first, by round |",
        "|---|---:|---:|",
        *(
            f"| {name} | {cell(values)} | {cell([b - a for a, b in zip(without, values, strict=True)])} |"
            for name, values in served.items()
        ),
        "",
    ]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
