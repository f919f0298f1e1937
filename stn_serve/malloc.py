"""glibc's allocator, told that a server allocates the same sizes again and again.

By default each buffer of a few hundred kilobytes is mapped from the kernel and given back, and touching its fresh pages
costs more than everything that is done with it: see `benchmarks/results/malloc.md`.
"""

from __future__ import annotations

import contextlib
import ctypes

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8

MMAP_THRESHOLD_BYTES = 32 * 2**20
"""Smaller buffers come from the heap; it is the most that glibc takes."""
TRIM_THRESHOLD_BYTES = 128 * 2**20
"""Free memory at the heap's end that is kept rather than given back."""
TOP_PAD_BYTES = 16 * 2**20
"""By how much the heap grows at least."""


def use_one_heap() -> None:
    """Let all threads allocate from one heap; to be called before any is started, so before numpy is imported.

    Only that heap's end can be given back. In the arena of a thread that has loaded a model, what the model took stays,
    16 MB for the digits, and the next thread that loads may have another arena. Threads hardly meet in the one heap:
    Python's take turns, and ONNX Runtime's have an allocator of their own for tensors.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give the kernel back what a large user has freed, such as a model that is no longer served."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Whether this process's allocator could be told; others than glibc's are left alone."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = (
        (M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (M_TOP_PAD, TOP_PAD_BYTES),
    )
    return all(mallopt(parameter, size) == 1 for parameter, size in wanted)
