"""Starting and ending the servers, each in a session of its own: the kernel shares the CPUs between sessions."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

from benchmarks.peers.peer import Unavailable
from stn_serve.machine import process_tree

START_TIMEOUT_S = 120.0


@contextmanager
def started(
    command: Sequence[str], log: Path, is_ready: Callable[[], bool], environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A server for the time of a `with`: its process id.

    Raises:
        Unavailable: it ends before it is ready, or does not become so.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                raise Unavailable(f"it does not start: {last[0] if last else 'it says nothing'}")
            time.sleep(0.1)
        yield process.pid
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """As an orchestrator would; then whatever it has left behind."""
    family = list(process_tree(process.pid))
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def free_ports(count: int) -> list[int]:
    """Of this machine's loopback."""
    sockets = [socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
