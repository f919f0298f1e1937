"""Servers of the same ONNX file side by side: requests a second, latencies, CPU time and memory.

    python -m benchmarks.serving --help
    python -m benchmarks.serving --perf-analyzer .perf/perf_analyzer
    python -m benchmarks.serving --model digits --server stn --server triton --concurrency 16 --rounds 5 --again
    python -m benchmarks.serving --report              # only write the table and the plot from what was measured

Each round starts the servers one after the other, so that what befalls the machine befalls all, and asks each in every
way it can be asked: tensors over gRPC and HTTP with NVIDIA's perf_analyzer where the server speaks as Triton does, and
with nghttp2's h2load for all of them; encoded images with h2load. Every answer is first compared with the model's own.
One server runs at a time; it and the load generator share the machine's CPUs, each in a session of its own.

What a round measured is kept at once in benchmarks/results/serving.json, and cells that have their rounds are left
alone: a run that is cut goes on where it was, and may be filled model by model. The other servers' packages are
installed into build/peers, each into an environment of its own, when they are first measured.
"""

from __future__ import annotations

import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import onnxruntime as ort
import typer

from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import Peer, Unavailable
from benchmarks.peers.workload import Workload
from benchmarks.serving_measurement import check, measure, warm_up
from benchmarks.serving_models import MODELS
from benchmarks.serving_plot import plot
from benchmarks.serving_results import Cell, Results
from benchmarks.serving_table import render
from stn_serve.limits import available_cpus

RESULTS = Path(__file__).parent / "results"
CONCURRENCIES = [1, 4, 16, 64]
WARM_UP_S = 1.0


def fill(results: Results, cells: Sequence[Cell], rounds: int, seconds: float, tool: Path, output: Path) -> None:
    """Measure until every cell has its rounds, and keep each measurement at once."""
    with TemporaryDirectory() as folder:
        workloads = {name: MODELS[name](Path(folder)) for name in dict.fromkeys(cell.model for cell in cells)}
        for number in range(rounds):
            for name, workload in workloads.items():
                for peer in PEERS.values():
                    due = [c for c in cells if (c.model, c.server) == (name, peer.name) and results.count(c) <= number]
                    if due and peer.name not in results.missing:
                        print(f"round {number + 1} of {rounds}: {name}, {peer.title}", flush=True)
                        measure_peer(results, peer, workload, due, seconds, tool)
                        results.save(output)


def measure_peer(
    results: Results, peer: Peer, workload: Workload, cells: Sequence[Cell], seconds: float, tool: Path
) -> None:
    """Start a server, measure these cells once, and end it; what fails is written down."""
    try:
        with TemporaryDirectory() as folder, peer.serve(workload, Path(folder)) as running:
            check(running, workload)
            warmed = set()
            for cell in cells:
                try:
                    if cell.way not in warmed:
                        warm_up(running, workload, cell.way, cell.concurrency, WARM_UP_S, tool)
                        warmed.add(cell.way)
                    measured = measure(running, workload, cell.way, cell.concurrency, seconds, tool)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    results.failures[cell] = str(error)
                    print(f"  {' '.join(cell.way)}, {cell.concurrency} at once: {error}", flush=True)
                else:
                    results.add(cell, measured)
                    print(f"  {' '.join(cell.way)}, {cell.concurrency} at once: {measured}", flush=True)
    except (Unavailable, RuntimeError) as reason:
        results.missing[peer.name] = str(reason)
        print(f"  not measured: {reason}", flush=True)


def select(
    models: Sequence[str], servers: Sequence[str], ways: Sequence[str], concurrencies: Sequence[int]
) -> list[Cell]:
    """The cells that are asked for, and that exist."""
    return [
        Cell(model, way, concurrency, peer.name)
        for model in models
        for peer in PEERS.values()
        if peer.name in servers
        for way in peer.ways
        if way.is_bare or any(all(word in way for word in wanted.split("-")) for wanted in ways)
        for concurrency in concurrencies
    ]


def write(results: Results, folder: Path) -> None:
    """The table and the plot."""
    (folder / "serving.md").write_text(render(results))
    plot(results, folder / "serving.png")


def describe_run() -> dict[str, str]:
    """How what is measured now comes about."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": f"{available_cpus()} CPUs of {_processor()}, ONNX Runtime {ort.__version__}",
        "commit": commit.stdout.strip(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(
    model: Annotated[list[str], typer.Option(help=f"One of {', '.join(MODELS)}; may be repeated.")] = list(MODELS),  # noqa: B006
    server: Annotated[list[str], typer.Option(help=f"One of {', '.join(PEERS)}; may be repeated.")] = list(PEERS),  # noqa: B006
    way: Annotated[
        list[str],
        typer.Option(
            help="Words of a way to ask: tensor or jpeg, grpc or http, perf_analyzer or h2load; may be repeated."
        ),
    ] = ["tensor", "jpeg"],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(min=1, help="Callers at once; may be repeated.")] = CONCURRENCIES,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured.")] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="How long each measurement lasts.")] = 5.0,
    perf_analyzer: Annotated[
        Path, typer.Option(envvar="PERF_ANALYZER", help="NVIDIA's load generator; by default the one on the PATH.")
    ] = Path("perf_analyzer"),
    again: Annotated[
        bool, typer.Option("--again", help="Forget what was measured of the cells that are chosen.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing.")] = False,
    output: Annotated[Path, typer.Option(help="The folder of serving.json, serving.md and serving.png.")] = RESULTS,
) -> None:
    """Measure servers of the same ONNX file side by side, and write a table and a plot.

    For example:

        python -m benchmarks.serving --perf-analyzer .perf/perf_analyzer

        python -m benchmarks.serving --model digits --way tensor-grpc --concurrency 16 --rounds 3 --again

        python -m benchmarks.serving --report
    """
    for given, known in ((model, MODELS), (server, PEERS)):
        for name in given:
            if name not in known:
                raise typer.BadParameter(f"'{name}' is none of {', '.join(known)}")
    output.mkdir(parents=True, exist_ok=True)
    file = output / "serving.json"
    results = Results.load(file)
    if not report:
        tool = shutil.which(perf_analyzer)
        if tool is None or shutil.which("h2load") is None:
            raise typer.BadParameter(
                f"{perf_analyzer if tool is None else 'h2load'} is not to be found: perf_analyzer is in the wheel "
                "tritonclient 2.51.0, h2load in the package nghttp2-client"
            )
        cells = select(model, server, way, concurrency)
        for name in server:
            results.missing.pop(name, None)
        if again:
            results.forget(cells)
        run = describe_run()
        results.runs = [other for other in results.runs if other != run] + [run]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)  # a run that is cut leaves no server behind
        fill(results, cells, rounds, seconds, Path(tool).resolve(), file)
    write(results, output)
    print((output / "serving.md").read_text())


if __name__ == "__main__":
    typer.run(main)
