"""What a process and all its descendants have used, from Linux."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GONE = (FileNotFoundError, ProcessLookupError)


def cpu_seconds(process: int) -> float:
    """User and system time of those that live, and of children that were waited for."""
    ticks = 0
    for pid in descendants(process):
        with suppress(*GONE):
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> float:
    """Proportional set size: what they share counts once."""
    kilobytes = 0
    for pid in descendants(process):
        with suppress(*GONE):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024


def descendants(process: int) -> Iterator[int]:
    """The process first."""
    yield process
    with suppress(*GONE):
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            for child in file.read_text().split():
                yield from descendants(int(child))
