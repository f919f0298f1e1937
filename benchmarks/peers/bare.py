"""The limit: `InferenceSession.run` in a loop, in a process of its own, with nobody to serve.

One session that computes with a thread for each CPU, or a session with one thread for each CPU, of which each computes
its part of the batch.

python -m benchmarks.peers.bare model_repository/digits 16 2 5
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.load import Load, quantiles
from benchmarks.peers.peer import BARE, BARE_INSTANCES, Peer, Running
from benchmarks.peers.workload import Workload
from stn_serve.limits import available_cpus

WARM_UP_S = 0.5


def loop(workload: Workload, batch: int, sessions: int, seconds: float) -> Load:
    """Images a second, and milliseconds a batch, with ONNX Runtime's defaults but for the threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(available_cpus() // sessions, 1)
    feed = {"image": np.stack([workload.image] * max(batch // sessions, 1))}

    def run(session: ort.InferenceSession, until: float) -> list[float]:
        ends = [time.perf_counter()]
        while ends[-1] < until:
            session.run(None, feed)
            ends.append(time.perf_counter())
        return ends

    loaded = [ort.InferenceSession(workload.onnx, options, providers=["CPUExecutionProvider"]) for _ in range(sessions)]
    with ThreadPoolExecutor(sessions) as threads:
        for length in (WARM_UP_S, seconds):
            began = time.perf_counter()
            runs = list(threads.map(run, loaded, [began + length] * sessions))
    milliseconds = np.concatenate([np.diff(ends) for ends in runs]) * 1e3
    elapsed_s = max(ends[-1] for ends in runs) - began
    return Load(len(milliseconds) * len(feed["image"]) / elapsed_s, *quantiles(milliseconds))


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:  # noqa: ARG001 - as the others
    """Nobody: each measurement starts the loop anew."""
    yield Running(0, {}, {})


def peers() -> list[Peer]:
    """With one session, and with one for each CPU."""
    return [
        Peer("bare", "bare run loop, 1 session", (BARE,), "a thread for each CPU, which spin while they wait", _serve),
        Peer("bare-instances", "bare run loop, a session a CPU", (BARE_INSTANCES,), "with one thread each", _serve),
    ]


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    measured = loop(Workload(directory.name, directory), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    print(json.dumps(measured._asdict()))
