"""The machine's memory and CPUs as Linux tells of them, and as Triton does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

MEMORY = Path("/proc/meminfo")
CPU_TIMES = Path("/proc/stat")


class Memory(NamedTuple):
    """Bytes."""

    total: int
    used: int


def memory() -> Memory | None:
    """Of the whole machine, whatever a control group allows; None where this is not Linux."""
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    total = kilobytes["MemTotal"]
    return Memory(total * 1024, (total - kilobytes["MemAvailable"]) * 1024)


class CpuUtilization:
    """The share of the machine's CPU time that was used between two readings."""

    def __init__(self) -> None:
        self._before = _cpu_times()
        self._last = 0.0

    def read(self) -> float | None:
        """Since the last reading, 0 to 1; None where this is not Linux."""
        before, now = self._before, _cpu_times()
        if before is None or now is None:
            return None
        idle, total = now[0] - before[0], now[1] - before[1]
        if total > 0:  # ticks of 10 ms
            self._before, self._last = now, 1 - idle / total
        return self._last


def _cpu_times() -> tuple[int, int] | None:
    """Ticks that all CPUs have been idle, and ticks altogether."""
    try:
        _, *times = CPU_TIMES.read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, times[:8])
    return idle + iowait, user + nice + system + idle + iowait + irq + softirq + steal


def cpu_seconds(process: int) -> float:
    """CPU time of a process and of its descendants that still run; 0 where this is not Linux."""
    ticks = 0
    for pid in process_tree(process):
        with suppress(OSError):
            times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(times[11]) + int(times[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def process_tree(process: int) -> Iterator[int]:
    """A process, and its descendants that still run; not theirs where this is not Linux."""
    yield process
    with suppress(OSError):  # what ends meanwhile has no children
        for file in Path(f"/proc/{process}/task").glob("*/children"):
            for child in file.read_text().split():
                yield from process_tree(int(child))
