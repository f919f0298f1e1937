"""The memory of a server's processes, in MiB, as Linux tells of it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from stn_serve.machine import process_tree

MIB = 2**20


def resident_mib(process: int) -> float:
    """Resident set of a process and its descendants: what they share counts for each of them."""
    pages = 0
    for pid in process_tree(process):
        with suppress(OSError):  # it has ended
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def proportional_mib(process: int) -> float:
    """Proportional set of a process and its descendants: what they share counts once."""
    kilobytes = 0
    for pid in process_tree(process):
        with suppress(OSError):  # it has ended
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kilobytes / 1024
