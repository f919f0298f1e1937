from __future__ import annotations

import os
import sys
import threading

import pytest

from stn_serve.niceness import NICENESS, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="the niceness of a thread is Linux's")
def test_a_thread_gives_way_with_those_it_starts_and_no_other_does() -> None:
    seen: list[int] = []

    def compute() -> None:
        give_way()
        seen.append(niceness())
        started = threading.Thread(target=lambda: seen.append(niceness()))
        started.start()
        started.join()

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert seen == [max(NICENESS, niceness())] * 2
    assert niceness() < NICENESS
