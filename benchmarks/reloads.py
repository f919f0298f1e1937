"""Do new versions of a model take over under load without a lost request, and does the memory come back?

    python -m benchmarks.reloads
    python -m benchmarks.reloads --reloads 10 --clients 2

Starts a real `stn serve` on a copy of `model_repository`, lets clients ask it without a pause and without a retry, over
gRPC and HTTP, and moves one new version after the other into the repository: once with clients that order the load
(`--model-control-mode explicit`), once with the server watching its files (`poll`). Also measures how long the server
takes to be ready. Writes benchmarks/results/reloads.md.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import tritonclient.grpc
import typer
from tritonclient.utils import InferenceServerException

from benchmarks.memory import resident_mib
from stn_serve import Client
from stn_serve.errors import ServingError
from stn_serve.limits import available_cpus
from stn_serve.machine import cpu_seconds
from stn_serve.server_process import ServerProcess, ServerProcessError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reloads.md"
MODEL = "digits"
MODES = {
    "explicit": ("--model-control-mode", "explicit", "--load-model", "*"),
    "poll": ("--model-control-mode", "poll", "--repository-poll-secs", "0.5"),
}
PATIENCE_S = 120.0
"""How long a server may take to notice a version."""
SETTLING = 5
"""Reloads before memory is looked at: the allocator has then seen two versions side by side."""


@dataclass
class Load:
    """What the clients have asked and got."""

    sent: int = 0
    answered: int = 0
    errors: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, address: str, stopped: threading.Event) -> None:
        """Ask one image after the other until told to stop."""
        image = np.random.default_rng(0).integers(0, 256, (42, 42), np.uint8)
        with Client(address, retries=0) as client:
            while not stopped.is_set():
                error, version = "", ""
                try:
                    version = client.predict(image, model=MODEL).model_version
                except ServingError as failure:
                    error = f"{type(failure).__name__}: {failure}"
                with self._lock:
                    self.sent += 1
                    self.answered += not error
                    self.versions |= {version} - {""}
                    self.errors += [error] if error else []


@dataclass
class Outcome:
    """Of one server and its reloads."""

    mode: str
    load: Load
    reloads: int
    seconds: float
    memory_mib: list[float]
    """Before the first reload, and after each."""
    threads: list[int]


def threads_of(process: int) -> int:
    """How many, those of ONNX Runtime included."""
    return len(list(Path(f"/proc/{process}/task").iterdir()))


def start(repository: Path) -> tuple[float, float]:
    """Start a server and stop it: seconds until it was ready, on the clock and of its CPU time."""
    began = time.monotonic()
    with ServerProcess(repository) as server:
        return time.monotonic() - began, cpu_seconds(server.pid)


def reload_under_load(repository: Path, mode: str, reloads: int, clients: int) -> Outcome:
    """Serve a repository, and replace its model again and again while clients ask for it."""
    load, stopped = Load(), threading.Event()
    with ExitStack() as stack:
        server = stack.enter_context(ServerProcess(repository, *MODES[mode]))
        control = stack.enter_context(tritonclient.grpc.InferenceServerClient(server.grpc))
        addresses = [server.grpc, f"http://{server.http}"]
        threads = [
            threading.Thread(target=load.ask, args=(addresses[number % 2], stopped)) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        stack.callback(stopped.set)
        _wait_for_answers(load, 100 * clients)
        memory, counted = [resident_mib(server.pid)], [threads_of(server.pid)]
        began = time.monotonic()
        for number in range(reloads):
            _replace(repository, control, mode)
            _wait_for_answers(load, load.answered + 10 * clients)
            memory.append(resident_mib(server.pid))
            counted.append(threads_of(server.pid))
            print(f"{mode} {number + 1}/{reloads}: {load.answered} answered, {memory[-1]:.0f} MiB", flush=True)
        seconds = time.monotonic() - began
        stopped.set()
        for thread in threads:
            thread.join()
    return Outcome(mode, load, reloads, seconds, memory, counted)


def copy_of_the_repository(directory: Path) -> Path:
    """What ships, with the digits alone."""
    shutil.copytree(ROOT / "model_repository" / MODEL, directory / "models" / MODEL)
    return directory / "models"


def _replace(repository: Path, control: tritonclient.grpc.InferenceServerClient, mode: str) -> None:
    """Move a copy of the newest version into place as the next one, wait until it serves, remove the one before."""
    model = repository / MODEL
    newest = max(int(path.name) for path in model.iterdir() if path.name.isdecimal())
    staged = repository / ".staged"
    shutil.copytree(model / str(newest), staged)
    staged.rename(model / str(newest + 1))
    if mode == "explicit":
        control.load_model(MODEL)
    patience = time.monotonic() + PATIENCE_S
    while list(control.get_model_metadata(MODEL).versions) != [str(newest + 1)]:
        if time.monotonic() > patience:
            raise RuntimeError(f"version {newest + 1} is not served: {control.get_model_repository_index()}")
        time.sleep(0.02)
    shutil.rmtree(model / str(newest))


def _wait_for_answers(load: Load, count: int) -> None:
    patience = time.monotonic() + PATIENCE_S
    while load.answered < count and not load.errors:
        if time.monotonic() > patience:
            raise RuntimeError(f"{load.answered} of {count} answers in {PATIENCE_S:g} s")
        time.sleep(0.01)


def _row(outcome: Outcome) -> str:
    memory, load = outcome.memory_mib, outcome.load
    settled = memory[min(SETTLING, len(memory) - 1) :]
    return (
        f"| {outcome.mode} | {outcome.reloads} in {outcome.seconds:.0f} s | {len(load.versions)} | {load.sent} | "
        f"{load.answered} | {len(load.errors)} | {memory[0]:.0f} | {settled[0]:.0f} | {memory[-1]:.0f} | "
        f"{max(memory):.0f} | {outcome.threads[0]} | {outcome.threads[-1]} |"
    )


def main(
    reloads: Annotated[int, typer.Option(help="In each mode.")] = 50,
    clients: Annotated[int, typer.Option(help="Threads that ask, half over gRPC and half over HTTP.")] = 4,
    starts: Annotated[int, typer.Option(help="Starts whose time is taken.")] = 5,
) -> None:
    """Reload under load, and write the page."""
    with tempfile.TemporaryDirectory() as directory:
        repository = copy_of_the_repository(Path(directory))
        begun = [start(repository) for _ in range(starts)]
        outcomes = [reload_under_load(repository, mode, reloads, clients) for mode in MODES]
    walls, cpus = zip(*begun, strict=True)
    heading = (
        f"`python -m benchmarks.reloads --reloads {reloads} --clients {clients} --starts {starts}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {available_cpus()} CPUs ({platform.machine()}), shared by clients and server. "
        "The shipped model of digits, one new version after the other; no client asks twice."
    )
    memory = (
        f"Memory is the server's resident set. The first {SETTLING} reloads teach the allocator what two versions side "
        "by side take; a version that is just being retired is seen in some of the numbers."
    )
    ready = (
        f"Ready with the shipped model, {starts} starts: {median(cpus):.2f} s of CPU time ({min(cpus):.2f} to "
        f"{max(cpus):.2f}), {median(walls):.2f} s on the clock ({min(walls):.2f} to {max(walls):.2f})."
    )
    columns = (
        "mode",
        "reloads",
        "versions that answered",
        "sent",
        "answered",
        "failed",
        "MiB before",
        f"after {SETTLING}",
        "after all",
        "most",
        "threads before",
        "after",
    )
    lines = [
        "# Reloads under load",
        "",
        heading,
        "",
        f"| {' | '.join(columns)} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(_row, outcomes),
        "",
        memory,
        "",
        "| mode | MiB before and after each reload |",
        "|---|---|",
        *(f"| {outcome.mode} | {' '.join(f'{value:.0f}' for value in outcome.memory_mib)} |" for outcome in outcomes),
        "",
        ready,
        "",
    ]
    errors = [error for outcome in outcomes for error in dict.fromkeys(outcome.load.errors)]
    lines += [f"- {error}" for error in errors]
    RESULTS.write_text("\n".join(lines))
    print("\n".join(lines))
    if errors:
        raise SystemExit(1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (InferenceServerException, RuntimeError, ServerProcessError) as error:
        sys.exit(f"benchmarks.reloads: {error}")
