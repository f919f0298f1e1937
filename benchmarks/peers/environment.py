"""A virtual environment for each of the other servers, under build/peers: none of it is a dependency of ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from benchmarks.peers.peer import Unavailable

HOME = Path(__file__).parents[2] / "build" / "peers"
APPS = Path(__file__).parent / "apps"
MARK = "installed.txt"


def environment(name: str, packages: Sequence[str]) -> Path:
    """The folder of its programs; made with these packages, and with our ONNX Runtime, when it is first asked for.

    Raises:
        Unavailable: pip cannot install them.
    """
    wanted = "\n".join([*packages, f"onnxruntime=={ort.__version__}"])
    home = HOME / name
    mark = home / MARK
    if not mark.exists() or mark.read_text() != wanted:
        print(f"  installing {wanted.replace(chr(10), ', ')} into {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        command = [str(home / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *wanted.split()]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
        if pip.returncode:
            raise Unavailable(f"pip cannot install {wanted.split()[0]}: {pip.stderr.strip().splitlines()[-1]}")
        mark.write_text(wanted)
    return home / "bin"
