"""How long a new process takes until its first answer, of one image.

    python -m benchmarks.first_answer ENGINE NAME FOLDER THREADS

`benchmarks.models` runs it in a process of its own each time, and reads the seconds that it prints: importing, loading
or building the network, and the first run, in which torch.compile compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROUNDS = 5
WARM = ("ONNX Runtime fp32", "ONNX Runtime int8", "PyTorch eager")
COLD = "torch.compile"
"""Measured once, with an empty cache: it takes half a minute or more."""


class Seconds(NamedTuple):
    """Medians."""

    imports: float
    loading: float
    first_run: float


def measure(name: str, folder: Path, threads: int) -> dict[str, Seconds]:
    """Every engine in turn, in new processes."""
    runs: dict[str, list[Seconds]] = {engine: [] for engine in WARM}
    for _ in range(ROUNDS):
        for engine, seconds in runs.items():
            seconds.append(_start(engine, name, folder, threads))
    with tempfile.TemporaryDirectory() as cache:
        cold = _start(COLD, name, folder, threads, {"TORCHINDUCTOR_CACHE_DIR": cache})
    return {engine: Seconds(*map(median, zip(*seconds, strict=True))) for engine, seconds in runs.items()} | {
        COLD: cold
    }


def _start(engine: str, name: str, folder: Path, threads: int, variables: dict[str, str] | None = None) -> Seconds:
    command = [sys.executable, "-m", "benchmarks.first_answer", engine, name, str(folder), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **(variables or {})}
    result = subprocess.run(command, check=True, capture_output=True, env=environment, start_new_session=True)
    return Seconds(*json.loads(result.stdout.splitlines()[-1]))


def answer_with_session(path: Path, threads: int) -> Seconds:
    """ONNX Runtime."""
    began = time.perf_counter()
    import numpy as np
    import onnxruntime as ort

    imported = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = np.zeros((1, *session.get_inputs()[0].shape[1:]), np.uint8)
    loaded = time.perf_counter()
    session.run(None, {"image": image})
    return Seconds(imported - began, loaded - imported, time.perf_counter() - loaded)


def answer_with_torch(name: str, threads: int, compiles: bool) -> Seconds:
    """PyTorch; loading is building the network with fresh weights."""
    began = time.perf_counter()
    import torch

    from benchmarks.model_files import named
    from export.onnx_export import Servable

    imported = time.perf_counter()
    torch.set_num_threads(threads)
    [subject] = named([name])
    network = Servable(subject.network())
    image = torch.from_numpy(subject.images(1))
    loaded = time.perf_counter()
    with torch.inference_mode():
        (torch.compile(network) if compiles else network)(image)
    return Seconds(imported - began, loaded - imported, time.perf_counter() - loaded)


def main(engine: str, name: str, folder: str, threads: str) -> None:
    """Print the seconds as JSON."""
    if engine.startswith("ONNX"):
        path = Path(folder) / f"{name}-{engine.rpartition(' ')[2]}.onnx"
        seconds = answer_with_session(path, int(threads))
    else:
        seconds = answer_with_torch(name, int(threads), compiles=engine == COLD)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
