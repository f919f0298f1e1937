"""The real Triton 2.51, out of the wheel of PyTriton: it runs without a GPU and without a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket

from targets import Target

HOME = Path(__file__).parents[2] / "build" / "triton-2.51"
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


@contextmanager
def running_triton(repository: Path, models: list[str]) -> Iterator[Target]:
    """Triton with these models of a repository, ready.

    Raises:
        NotAvailable: it does not start.
    """
    home = install()
    triton = home / "pytriton" / "tritonserver"
    grpc, http, metrics = _free_ports()
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={triton / 'backends'}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
        "--exit-timeout-secs=5",
    ]
    libraries = [str(home / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    log = repository.parent / "triton.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Target("triton", *(f"127.0.0.1:{port}" for port in (grpc, http, metrics)))
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_ports() -> list[int]:
    with socket() as first, socket() as second, socket() as third:
        sockets = (first, second, third)
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    words = [line for line in log.read_text().splitlines() if line.startswith("E") or "error" in line]
    raise NotAvailable(f"tritonserver does not start: {words[-1] if words else 'no reason given'}")
