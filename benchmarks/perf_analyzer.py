"""NVIDIA's load generator for servers that speak as Triton does."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.load import Load

WINDOWS = 3
"""It will not report fewer."""
TOO_SHORT = "Please use a larger time window"
PATIENCE_S = 60.0


def ask(program: Path, address: str, protocol: str, model: str, concurrency: int, seconds: float) -> Load:
    """So many callers who wait for their answers, for so long, or until answers fall into each window.

    Raises:
        RuntimeError: it does not report; says why.
    """
    for longer in (1, 2, 4, 8):
        with TemporaryDirectory() as folder:
            report = Path(folder) / "report.csv"
            said = _run(program, address, protocol, model, concurrency, longer * seconds, report)
            if report.exists():
                return parse(report.read_text())
        if TOO_SHORT not in said:
            break
    raise RuntimeError(f"perf_analyzer: {(said.strip().splitlines() or ['it says nothing'])[-1].strip()}")


def _run(program: Path, address: str, protocol: str, model: str, concurrency: int, seconds: float, report: Path) -> str:
    window_ms = round(seconds * 1e3 / WINDOWS)
    command = [str(program), "-m", model, "-u", address, "-i", protocol, "-f", str(report)]
    command += ["--concurrency-range", str(concurrency), "--measurement-interval", str(window_ms)]
    # Rounds and medians are ours: whatever was measured in its windows is to be reported.
    command += ["--max-trials", str(WINDOWS), "--stability-percentage", "999"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True, timeout=seconds + PATIENCE_S
    )
    if done.returncode:
        report.unlink(missing_ok=True)
    return done.stdout + done.stderr


def parse(report: str) -> Load:
    """The row of its CSV, latencies in microseconds."""
    (row,) = csv.DictReader(report.splitlines())
    return Load(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p99 latency"]) / 1e3)
