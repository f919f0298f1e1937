"""A really started `stn serve`, for the tests of everything that speaks to one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@dataclass(frozen=True)
class Served:
    """A server that is ready; addresses are `host:port`."""

    process: subprocess.Popen[str]
    grpc: str
    http: str
    metrics: str


def start(repository: Path, *flags: str) -> Served:
    """Start a server on free ports and wait until it is ready."""
    ready_file = repository / "ready.json"
    ready_file.unlink(missing_ok=True)  # of a server before
    command = [sys.executable, "-m", "stn_serve", "serve", "--model-repository", str(repository), *FREE_PORTS, *flags]
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready_file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not ready_file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {process.communicate()[0]}")
        time.sleep(0.02)
    return Served(process, **json.loads(ready_file.read_text()))


def stop(served: Served) -> tuple[int, str]:
    """Stop it as an orchestrator would; returns its exit code and what it printed."""
    served.process.terminate()
    output, _ = served.process.communicate(timeout=30)
    return served.process.returncode, output


@contextmanager
def running(repository: Path, *flags: str) -> Iterator[Served]:
    """A server for the time of a `with`; it must end well."""
    served = start(repository, *flags)
    try:
        yield served
    finally:
        code, output = stop(served)
    assert code == 0, output


def run_stn(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`stn` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "stn_serve", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
