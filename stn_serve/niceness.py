"""Who gets a CPU first where there are too few: the event loop, then what computes.

The event loop needs little, and nothing else moves while it waits: requests are not read, those that are too many not
refused, answers not sent. So the threads that compute or decode are nicer to others than it is. It is a matter of
microseconds until there is more to do than the CPUs can; then it decides whether a refusal takes one or six hundred
milliseconds (`benchmarks/results/overload.md`).
"""

from __future__ import annotations

import os
import sys
import threading

NICENESS = 10
"""About a ninth of the CPU time of a thread with niceness 0, where both want the same CPU (setpriority(2))."""


def give_way() -> None:
    """Make this thread, and all that it starts, nicer; Linux alone knows the niceness of a thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
