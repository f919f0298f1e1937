from __future__ import annotations

import subprocess
import sys

import pytest

COUNT_HEAPS = """
import ctypes, sys, threading
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
together = threading.Barrier(4)
def allocate():
    together.wait()
    for _ in range(1000):
        libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fdopen.restype = ctypes.c_void_p
output = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, output)
libc.fflush(output)
"""


def heaps(preparation: str) -> int:
    command = [sys.executable, "-c", preparation + COUNT_HEAPS]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("<heap nr=")


@pytest.mark.parametrize("module", ["serve", "worker"])
def test_all_threads_of_a_server_allocate_from_one_heap(module: str) -> None:
    assert heaps("") > 1, "glibc gives threads heaps of their own"
    assert heaps(f"import stn_serve.{module}\n") == 1
