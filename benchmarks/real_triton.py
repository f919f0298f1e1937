"""The real Triton 2.51, out of the wheel of PyTriton: it runs without a GPU and without a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

HOME = Path(__file__).parents[1] / "build" / "triton-2.51"
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy>=1.26,<2")  # its Python backend cannot work with numpy 2
START_TIMEOUT_S = 90.0


class NotAvailable(Exception):
    """Triton cannot be had or started here; says why."""


def install() -> Path:
    """Where Triton lies; brought there the first time.

    Raises:
        NotAvailable: the wheel cannot be installed, or knows nothing of this Python.
    """
    if HOME.exists():
        return HOME
    unfinished = HOME.with_name(f".{HOME.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(unfinished), *PACKAGES]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        if pip.returncode:
            raise NotAvailable(f"pip cannot install {' and '.join(PACKAGES)}: {pip.stderr.strip().splitlines()[-1]}")
        _arrange_backend(unfinished)
        unfinished.rename(HOME)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return HOME


def _arrange_backend(home: Path) -> None:
    """The Python backend, its stub for this Python and its numpy in one folder, where the stub looks first."""
    triton = home / "pytriton" / "tritonserver"
    stub = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.exists():
        raise NotAvailable(f"its Python backend has no stub for Python {stub.name}")
    backend = triton / "backends" / "python"
    shutil.copy2(stub / "triton_python_backend_stub", backend)
    for package in ("numpy", "numpy.libs"):
        shutil.move(home / package, backend / package)
    module = backend / "triton_python_backend_utils.py"
    module.write_text("import sys, os; sys.path.insert(0, os.path.dirname(__file__))\n" + module.read_text())
    for program in (backend / "triton_python_backend_stub", triton / "bin" / "tritonserver"):
        program.chmod(0o755)


class Triton:
    """One that may end and come back, at the same addresses; each is `host:port`."""

    def __init__(self, repository: Path, models: Sequence[str], flags: Sequence[str] = ()) -> None:
        """Prepare it.

        Args:
            repository: Its model repository; its log is written beside it.
            models: Those of the repository to load.
            flags: Further ones of `tritonserver`.

        Raises:
            NotAvailable: there is no Triton here.
        """
        self._home = install()
        grpc, http, metrics = _free_ports()
        self.grpc, self.http, self.metrics = (f"127.0.0.1:{port}" for port in (grpc, http, metrics))
        self.log = repository.parent / f"triton_{grpc}.log"
        self._memory = f"triton_test_{os.getpid()}_{grpc}_"
        triton = self._home / "pytriton" / "tritonserver"
        self._command = [
            str(triton / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={triton / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._memory}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in models),
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={metrics}",
            "--exit-timeout-secs=5",
            *flags,
        ]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it, and return once it is ready.

        Raises:
            NotAvailable: it does not start.
        """
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start it, and return at once."""
        libraries = [str(self._home / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
        environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                self._command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_until_ready(self) -> None:
        """Return once it answers.

        Raises:
            NotAvailable: it does not start.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=1).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
            else:
                return
        words = [line for line in self.log.read_text().splitlines() if line.startswith("E") or "error" in line]
        raise NotAvailable(f"tritonserver does not start: {words[-1] if words else 'no reason given'}")

    def kill(self) -> None:
        """End it at once, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()
        self._clean()

    def stop(self) -> int:
        """End it as an orchestrator would; returns its exit code."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._clean()

    def _clean(self) -> None:
        """The processes of its Python models and their memory outlive one that is killed."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for region in Path("/dev/shm").glob(f"{self._memory}*"):  # noqa: S108 - where the kernel has it
            region.unlink(missing_ok=True)


@contextmanager
def running_triton(repository: Path, models: Sequence[str], flags: Sequence[str] = ()) -> Iterator[Triton]:
    """A Triton for the time of a `with`, ready.

    Raises:
        NotAvailable: it does not start.
    """
    triton = Triton(repository, models, flags)
    triton.launch()
    try:
        triton.wait_until_ready()
        yield triton
    finally:
        triton.stop()


def _free_ports() -> list[int]:
    with socket() as first, socket() as second, socket() as third:
        sockets = (first, second, third)
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
