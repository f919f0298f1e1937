"""What large answers cost with glibc's allocator as it comes, and as `stn serve` sets it.

python -m benchmarks.malloc
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tritonclient.grpc import service_pb2

from stn_serve.malloc import keep_freed_memory

SIZES_KB = (16, 150, 600, 3000)
ANSWERS, ROUNDS = 200, 7
RESULTS = Path(__file__).parent / "results" / "malloc.md"


def main() -> None:
    """Measure both, each in a process of its own, and write the table."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "kept":
            keep_freed_memory()
        print(*(cost_us(size_kb * 1000) for size_kb in SIZES_KB))
        return
    default, kept = _measure("default"), _measure("kept")
    rows = [f"| {size} KB | {one:.0f} | {two:.0f} |" for size, one, two in zip(SIZES_KB, default, kept, strict=True)]
    date, libc = datetime.now(UTC).date(), " ".join(platform.libc_ver())
    RESULTS.write_text(
        f"""# Large answers and glibc's allocator

`python -m benchmarks.malloc`, {date}, one thread of a {platform.machine()} CPU, {libc}. CPU microseconds to build and
serialise a `ModelInferResponse` of raw bytes: median of {ROUNDS} rounds of {ANSWERS}. CPU time, so that others on the
machine matter little.

| answer | as glibc comes | as `stn serve` sets it |
|---|---:|---:|
"""
        + "\n".join(rows)
        + "\n"
    )
    print(RESULTS.read_text())


def _measure(name: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.malloc", name]
    return [float(part) for part in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def cost_us(size: int) -> float:
    """CPU time in microseconds to build and serialise a gRPC answer of `size` bytes; the median of several rounds."""
    data = os.urandom(size)
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(ANSWERS):
            response = service_pb2.ModelInferResponse(model_name="model")
            response.raw_output_contents.append(data)
            response.SerializeToString()
        rounds.append((time.process_time() - began) / ANSWERS * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
