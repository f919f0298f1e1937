"""NVIDIA's load generator for servers that speak as Triton does."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.load import Load

WINDOWS = 3
"""It will not report fewer."""
PATIENCE_S = 60.0


def ask(program: Path, address: str, protocol: str, model: str, concurrency: int, seconds: float) -> Load:
    """So many callers who wait for their answers, for so long.

    Raises:
        RuntimeError: it does not report; says why.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        command = [str(program), "-m", model, "-u", address, "-i", protocol, "-f", str(report)]
        command += [
            "--concurrency-range",
            str(concurrency),
            "--measurement-interval",
            str(round(seconds * 1e3 / WINDOWS)),
        ]
        # Rounds and medians are ours: whatever was measured in its windows is to be reported.
        command += ["--max-trials", str(WINDOWS), "--stability-percentage", "999"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, start_new_session=True, timeout=seconds + PATIENCE_S
        )
        if done.returncode or not report.exists():
            raise RuntimeError(f"perf_analyzer: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return parse(report.read_text())


def parse(report: str) -> Load:
    """The row of its CSV, latencies in microseconds."""
    (row,) = csv.DictReader(report.splitlines())
    return Load(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e3, float(row["p99 latency"]) / 1e3)
