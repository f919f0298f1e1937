"""`stn serve` as a process of its own, on free ports, for as long as a `with` block lasts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from stn_serve.setting_sources import PREFIX

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class ServerProcessError(ValueError):
    """The server did not become ready, or did not stop cleanly; says what it printed."""


class ServerProcess:
    """A real server, in a session of its own as in production: Linux shares the CPUs out among sessions.

    Args:
        repository: the model repository to serve.
        flags: more settings. Those of the environment are for servers that somebody starts, and do not reach this one.

    Raises:
        ServerProcessError: it does not become ready, or does not stop cleanly.
    """

    grpc: str
    http: str
    metrics: str

    def __init__(self, repository: Path, *flags: str) -> None:
        self._repository = repository
        self._flags = flags
        self._folder = tempfile.TemporaryDirectory(prefix="stn-serve-")

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        self._ready, self._output = folder / "ready.json", folder / "output.txt"
        ports = [argument for name in ("grpc", "http", "metrics") for argument in (f"--{name}-port", "0")]
        command = [sys.executable, "-m", "stn_serve", "serve", "--model-repository", str(self._repository)]
        with self._output.open("w") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*command, *ports, *self._flags, "--ready-file", str(self._ready)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        output = self._output.read_text()
        self._folder.cleanup()
        if code and error is None:
            raise ServerProcessError(f"the server stopped with exit code {code}: {output}")

    @property
    def pid(self) -> int:
        """Of the process; with several workers of their supervisor."""
        return self._process.pid

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerProcessError(f"the server did not become ready: {self._output.read_text()}")
            time.sleep(0.01)
        addresses = json.loads(self._ready.read_text())
        self.grpc, self.http, self.metrics = addresses["grpc"], addresses["http"], addresses["metrics"]
