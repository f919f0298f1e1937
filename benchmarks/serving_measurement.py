"""One measurement of a server that runs: the load, and meanwhile what the server's processes use."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks import h2load, perf_analyzer
from benchmarks.load import Load
from benchmarks.memory import proportional_mib
from benchmarks.peers.peer import BARE_INSTANCES, Running, Way
from benchmarks.peers.workload import Workload
from benchmarks.serving_results import Round
from stn_serve.limits import available_cpus
from stn_serve.machine import cpu_seconds

SAMPLE_S = 0.1
SETTLED = slice(3, 9)
"""Tenths of a load generator's life in which it does nothing but ask."""
ROOT = Path(__file__).parents[1]


def measure(running: Running, workload: Workload, way: Way, concurrency: int, seconds: float, tool: Path) -> Round:
    """Load a server in one way; the bare loop, which serves nobody, computes so many images at once.

    Raises:
        RuntimeError: the load generator has no answers.
    """
    if way.is_bare:
        return _measure_bare(workload, way, min(concurrency, workload.max_batch_size), seconds)
    load, cpu = _watched(running.process, lambda: _load(running, workload, way, concurrency, seconds, tool))
    return _round(load, cpu, proportional_mib(running.process))


def check(running: Running, workload: Workload) -> None:
    """Each way once, which must give the model's own answer.

    Raises:
        RuntimeError: it does not.
    """
    expected = _expected(workload)
    for way, call in running.calls.items():
        try:
            answer = h2load.ask_once(call, way.protocol)
            logits = call.read_logits(answer) if call.read_logits else expected
        except Exception as error:  # of as many kinds as there are servers
            raise RuntimeError(f"{' '.join(way)}: {type(error).__name__}: {error}") from error
        if logits.size != expected.size or not np.allclose(logits.ravel(), expected, rtol=1e-3, atol=1e-3):
            raise RuntimeError(f"{' '.join(way)}: another answer than the model's")


def warm_up(running: Running, workload: Workload, way: Way, concurrency: int, seconds: float, tool: Path) -> None:
    """What the first batches of each size cost is not measured.

    Raises:
        RuntimeError: the load generator has no answers.
    """
    if not way.is_bare:
        _load(running, workload, way, concurrency, seconds, tool)


def _load(running: Running, workload: Workload, way: Way, concurrency: int, seconds: float, tool: Path) -> Load:
    if way.client == "h2load":
        return h2load.ask(running.calls[way], way.protocol, concurrency, seconds)
    return perf_analyzer.ask(tool, running.addresses[way.protocol], way.protocol, workload.name, concurrency, seconds)


def _measure_bare(workload: Workload, way: Way, batch: int, seconds: float) -> Round:
    sessions = min(available_cpus(), batch) if way == BARE_INSTANCES else 1
    arguments = [str(workload.directory), str(batch), str(sessions), str(seconds)]
    command = [sys.executable, "-m", "benchmarks.peers.bare", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        memory: list[float] = []

        def wait() -> Load:
            while process.poll() is None:
                memory.append(proportional_mib(process.pid))
                time.sleep(SAMPLE_S)
            return Load(**json.loads(process.communicate()[0]))

        load, cpu = _watched(process.pid, wait)
    return _round(load, cpu, max(memory))


def _watched(process: int, load: Callable[[], Load]) -> tuple[Load, float]:
    """The load, and CPU seconds a second of the process and its descendants, in the middle of it."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            samples.append((time.perf_counter(), cpu_seconds(process)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        result = load()
    finally:
        done.set()
        thread.join()
    first, last = (samples[len(samples) * tenths // 10] for tenths in (SETTLED.start, SETTLED.stop))
    return result, (last[1] - first[1]) / (last[0] - first[0])


def _round(load: Load, cpu: float, memory: float) -> Round:
    return Round(
        throughput=round(load.throughput, 1),
        p50_ms=round(load.p50_ms, 3),
        p99_ms=round(load.p99_ms, 3),
        cpu_ms=round(1e3 * cpu / load.throughput, 4),
        memory_mb=round(memory, 1),
    )


def _expected(workload: Workload) -> NDArray[Any]:
    session = ort.InferenceSession(workload.onnx, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": workload.image[None]})
    return np.asarray(logits).ravel()
