"""The threads that compute, and who may use the CPUs next.

Every model computes in the same pool of threads. A batch takes as many CPUs as its ONNX Runtime session has threads,
and starts when so many are free: however many models and instances there are, no more threads compute than the process
has CPUs. The model that has used the least CPU time goes first (start-time fair queuing, Goyal et al. 1996), so that
one with much to do, or with slow batches, takes what is left but never starves another. Turns alone would not do that:
a model with batches of 20 ms would get twenty times the time of one whose batches take 1 ms.

Batches that run on a GPU take no CPU here: their threads only wait, and the GPU's driver shares it out.

A batch that runs for longer than `LEASE_S` gives its CPUs back and runs on: what a model that hangs costs the others is
for the operating system to share out, but nobody waits for it. For the same reason the threads are daemons: none that
hangs keeps the process from ending, as those of `concurrent.futures` would.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

from stn_serve.niceness import give_way

LEASE_S = 1.0
"""How long a batch may keep its CPUs from others."""
THREAD = "compute"
"""The name of each thread."""


class Job(Protocol):
    """One batch."""

    def run(self) -> None:
        """Compute, in a thread; must not raise."""

    def finish(self) -> None:
        """Take the result, on the event loop."""


NextJob = Callable[[], Job | None]
"""Called when CPUs are free for a job; None if there is nothing to do, or not yet."""


@dataclass(eq=False, slots=True)
class Share:
    """What one model has had of the CPUs."""

    cpus: int
    """That each of its jobs takes; 0 for what runs elsewhere."""
    used_ns: int = 0
    """CPU time, on the clock that all share."""
    usual_ns: int = 0
    """Of its last job; the next one is charged so much before it has ended."""


@dataclass(eq=False, slots=True)
class _Lease:
    share: Share
    job: Job
    loop: asyncio.AbstractEventLoop
    began_ns: int = field(default_factory=time.perf_counter_ns)
    charged_ns: int = 0
    timer: asyncio.TimerHandle | None = None


class ComputePool:
    """Threads for the jobs of all models. Used on one event loop."""

    def __init__(self, cpus: int, lease_s: float = LEASE_S) -> None:
        self._cpus = self._free = cpus
        self._lease_s = lease_s
        self._waiting: dict[Share, NextJob] = {}
        self._clock_ns = 0
        self._dispatching = False
        self._jobs: SimpleQueue[tuple[_Lease, Callable[[_Lease], None]] | None] = SimpleQueue()
        self._threads = self._busy = 0

    def share(self, cpus: int) -> Share:
        """A model's account; `cpus` is how many threads each of its jobs computes with, 0 for a GPU's."""
        return Share(min(cpus, self._cpus))

    def request(self, share: Share, next_job: NextJob) -> None:
        """Run one more job of `share` when it is its turn; who waits already asks for nothing more."""
        if share not in self._waiting:
            # Who was idle has not saved anything up.
            share.used_ns = max(share.used_ns, self._clock_ns)
            self._waiting[share] = next_job
        if not self._dispatching:
            # Not at once: what else arrives in this turn of the loop joins the batch for free.
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    @property
    def busy(self) -> bool:
        """Whether any job computes."""
        return self._busy > 0

    def close(self) -> None:
        """End the threads; one that hangs ends with the process."""
        for _ in range(self._threads):
            self._jobs.put(None)
        self._threads = 0
        if self._busy:
            atexit.register(_leave)

    def _dispatch(self) -> None:
        self._dispatching = False
        while share := self._first():
            job = self._waiting.pop(share)()
            if job:
                self._start(share, job)

    def _first(self) -> Share | None:
        """Who may start now. One that needs many CPUs is not overtaken by those that need few."""
        first = min(self._waiting, key=lambda share: share.used_ns, default=None)
        if first and first.cpus <= self._free:
            return first
        return next((share for share in self._waiting if not share.cpus), None)

    def _start(self, share: Share, job: Job) -> None:
        loop = asyncio.get_running_loop()
        lease = _Lease(share, job, loop, charged_ns=share.usual_ns)
        self._free -= share.cpus
        self._clock_ns = max(self._clock_ns, share.used_ns)
        share.used_ns += lease.charged_ns
        lease.timer = loop.call_later(self._lease_s, self._return_cpus, lease)
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=_work, args=(self._jobs,), name=THREAD, daemon=True).start()
        self._jobs.put((lease, self._finish))

    def _return_cpus(self, lease: _Lease) -> None:
        if lease.timer:
            lease.timer.cancel()
            lease.timer = None
            share = lease.share
            share.usual_ns = (time.perf_counter_ns() - lease.began_ns) * share.cpus
            share.used_ns += share.usual_ns - lease.charged_ns
            self._free += share.cpus
            self._dispatch()

    def _finish(self, lease: _Lease) -> None:
        self._busy -= 1
        if lease.timer is None:  # it has overrun, and a thread may have been added in place of its own
            self._threads -= 1
            self._jobs.put(None)
        lease.job.finish()
        self._return_cpus(lease)


def _work(jobs: SimpleQueue[tuple[_Lease, Callable[[_Lease], None]] | None]) -> None:
    give_way()
    while item := jobs.get():
        _run(*item)
        del item  # while the thread waits, nothing may hold a model that has been unloaded


def _run(lease: _Lease, finish: Callable[[_Lease], None]) -> None:
    lease.job.run()
    with contextlib.suppress(RuntimeError):  # the loop has ended without waiting for this job
        lease.loop.call_soon_threadsafe(finish, lease)


def _leave() -> None:
    """End the process without its destructors: those of ONNX Runtime abort it while one of its threads computes.

    Where none does any more, it ends as usual, with its own exit code.
    """
    if any(thread.name == THREAD for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
