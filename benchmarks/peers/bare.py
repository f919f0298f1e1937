"""The limit: `InferenceSession.run` in a loop, in a process of its own, with nobody to serve.

python -m benchmarks.peers.bare model_repository/digits 16 5
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.load import Load, quantiles
from benchmarks.peers.peer import BARE, Peer, Running
from benchmarks.peers.workload import Workload
from stn_serve.limits import available_cpus

WARM_UP_S = 0.5


def loop(workload: Workload, batch: int, seconds: float) -> Load:
    """Images a second, and milliseconds a batch, with a thread for each CPU and ONNX Runtime's defaults."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    session = ort.InferenceSession(workload.onnx, options, providers=["CPUExecutionProvider"])
    feed = {"image": np.stack([workload.image] * batch)}
    began = time.perf_counter()
    while time.perf_counter() < began + WARM_UP_S:
        session.run(None, feed)
    ends = [time.perf_counter()]
    while ends[-1] < ends[0] + seconds:
        session.run(None, feed)
        ends.append(time.perf_counter())
    milliseconds = np.diff(ends) * 1e3
    return Load(len(milliseconds) * batch / (ends[-1] - ends[0]), *quantiles(milliseconds))


@contextmanager
def _serve(workload: Workload, folder: Path) -> Iterator[Running]:  # noqa: ARG001 - as the others
    """Nobody: each measurement starts the loop anew."""
    yield Running(0, {}, {})


PEER = Peer("bare", "bare InferenceSession.run", (BARE,), _serve)


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    print(json.dumps(loop(Workload(directory.name, directory), int(sys.argv[2]), float(sys.argv[3]))._asdict()))
