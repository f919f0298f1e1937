"""One network against itself: ONNX Runtime in float32 and int8, PyTorch eager and compiled, in one process.

    python -m benchmarks.model_times NAME THREADS FOLDER [compile]

`benchmarks.models` runs it, and reads what it prints. The engines take turns; a cell ends after so many rounds or so
many seconds. With `compile` nothing is measured: torch.compile fills its cache, which takes minutes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
import torch._inductor.config
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.model_files import Subject, named
from benchmarks.training_speed import time_rounds
from export.onnx_export import Servable
from export.parity_cases import Images
from stn_serve.session import create_session

ROUNDS = 60
ENOUGH_S = 6.0
"""Of timing all engines with one size of batch; five rounds are run in any case."""


@dataclass(frozen=True, kw_only=True)
class Time:
    """Milliseconds of a batch: median, and the middle 80 % of the rounds."""

    model: str
    engine: str
    threads: int
    batch: int
    ms: float
    low_ms: float
    high_ms: float
    rounds: int


def session_program(path: Path, threads: int, images: Images) -> Callable[[], object]:
    """ONNX Runtime as `stn serve` sets it up."""
    config = ModelConfig(name=path.stem)
    config.instance_group.add(kind="KIND_CPU")
    config.parameters["intra_op_thread_count"].string_value = str(threads)
    session = create_session(path, config)
    return lambda: session.run(None, {"image": images})


def torch_program(network: Callable[..., object], images: Images) -> Callable[[], object]:
    """PyTorch without gradients."""
    batch = torch.from_numpy(images)

    def run() -> object:
        with torch.inference_mode():
            return network(batch)

    return run


def cache_compilations(folder: Path) -> None:
    """Compiled code is kept, and asks how many threads there are when it runs."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((folder / "inductor").resolve())
    torch._inductor.config.cpp.dynamic_threads = True


def compiled(subject: Subject) -> Callable[..., object]:
    """As torch compiles by default: for a batch of one, and once more for any other, which dynamic shapes serve."""
    network = torch.compile(Servable(subject.network()))
    for batch in subject.batches[:2]:
        torch_program(network, subject.images(batch))()
    return network


def measure(subject: Subject, folder: Path, threads: int) -> list[Time]:
    """All engines with all sizes of batches."""
    files = subject.files(folder)
    eager, fast = Servable(subject.network()), compiled(subject)
    times = []
    for batch in subject.batches:
        images = subject.images(batch)
        programs = {
            "ONNX Runtime fp32": session_program(files["fp32"], threads, images),
            "ONNX Runtime int8": session_program(files["int8"], threads, images),
            "PyTorch eager": torch_program(eager, images),
            "torch.compile": torch_program(fast, images),
        }
        for engine, seconds in time_rounds(programs, ROUNDS, warm_up=1, enough_s=ENOUGH_S).items():
            low, *_, high = quantiles(seconds, n=10)
            times.append(
                Time(
                    model=subject.name,
                    engine=engine,
                    threads=threads,
                    batch=batch,
                    ms=round(1e3 * median(seconds), 4),
                    low_ms=round(1e3 * low, 4),
                    high_ms=round(1e3 * high, 4),
                    rounds=len(seconds),
                )
            )
    return times


def main(name: str, threads: str, folder: str, purpose: str = "measure") -> None:
    """Print the times as JSON."""
    [subject] = named([name])
    torch.set_num_threads(int(threads))
    cache_compilations(Path(folder))
    if purpose == "compile":
        began = time.perf_counter()
        compiled(subject)
        print(f"{name}: compiled in {time.perf_counter() - began:.0f} s")
    else:
        print(json.dumps([asdict(each) for each in measure(subject, Path(folder), int(threads))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
