"""What the other Python servers have in common: an environment, an app of ours in it, and a port."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.peers.environment import APPS, environment
from benchmarks.peers.process import started
from benchmarks.peers.workload import Workload
from stn_serve.limits import available_cpus


@contextmanager
def app(
    name: str,
    packages: Sequence[str],
    command: Sequence[str],
    workload: Workload,
    folder: Path,
    ready_url: str,
    variables: Mapping[str, str],
) -> Iterator[int]:
    """A server for the time of a `with`: its process id. The command's program is one of its environment's.

    Raises:
        Unavailable: it cannot be installed or started; says why.
    """
    programs = environment(name, packages)
    given = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(APPS),
        "MODEL": str(workload.onnx),
        "IMAGE_SHAPE": json.dumps(workload.image.shape),
        "MAX_BATCH_SIZE": str(workload.max_batch_size),
        "THREADS": str(available_cpus()),
        **variables,
    }

    def is_ready() -> bool:
        try:
            return httpx.get(ready_url, timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    with started([str(programs / command[0]), *command[1:]], folder / f"{name}.log", is_ready, given) as process:
        yield process
