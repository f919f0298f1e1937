"""What this process may use of the machine: processors and memory as its control group grants them, open files.

Linux grants them by control groups of version 2 (one tree) or 1 (a tree for each resource), and each group has at most
what the groups around it have. ONNX Runtime and Python count the whole machine's processors.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


class _Share:
    """How many processes divide what this machine grants; set once, before anything is loaded."""

    processes = 1


def share_among(processes: int) -> None:
    """This process is one of several that serve together."""
    _Share.processes = processes


def available_cpus(root: Path = ROOT) -> int:
    """Processors for this process, at least one: its affinity, or what its control group grants, divided by workers."""
    allowed = len(os.sched_getaffinity(0))
    granted = min((allowed, *_cpu_quotas(root)))
    return max(1, math.ceil(granted) // _Share.processes)


def available_memory_bytes(root: Path = ROOT) -> int:
    """Memory for this process: the machine's, or what its control group grants, divided by workers."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min((machine, *_memory_limits(root))) // _Share.processes


def raise_open_files() -> int:
    """Allow as many open files as this user may have; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, ""):
        yield from _quotient((_read(group / "cpu.max") or "max").split())
    for group in _groups(root, "cpu"):
        yield from _quotient([_read(group / "cpu.cfs_quota_us") or "-1", _read(group / "cpu.cfs_period_us") or "0"])


def _quotient(quota_and_period: list[str]) -> Iterator[float]:
    if all(part.isdecimal() and int(part) for part in quota_and_period):
        quota, period = map(int, quota_and_period)
        yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    files = [group / "memory.max" for group in _groups(root, "")]
    files += [group / "memory.limit_in_bytes" for group in _groups(root, "memory")]
    for text in map(_read, files):
        if text and text.isdecimal():  # "max" is none
            yield int(text)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of the process's group and of those around it; an empty controller is version 2.

    In a container the path may be the host's while the tree is the container's own: then only its root exists.
    """
    mount = root / "sys/fs/cgroup" / controller
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inner = mount / path.lstrip("/")
            yield inner
            yield from (outer for outer in inner.parents if outer == mount or mount in outer.parents)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
