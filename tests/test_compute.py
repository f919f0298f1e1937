from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import dataclass, field

from stn_serve.compute import ComputePool, Job, Share


@dataclass
class Work:
    """A job that can be held, and that remembers in which order it began."""

    name: str
    began: list[str]
    free: threading.Event = field(default_factory=threading.Event)
    running: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def run(self) -> None:
        self.began.append(self.name)
        self.running.set()
        self.free.wait(10)

    def finish(self) -> None:
        self.ended.set()


def submit(pool: ComputePool, share: Share, *work: Work) -> None:
    """Ask for turns, as a model with a queue and as many instances would."""
    left = list(work)

    def next_job() -> Job | None:
        job = left.pop(0)
        if left:
            pool.request(share, next_job)
        return job

    pool.request(share, next_job)


def free(work: Work) -> Work:
    work.free.set()
    return work


async def running(work: Work) -> None:
    assert await asyncio.to_thread(work.running.wait, 10)


def test_no_more_threads_compute_than_there_are_cpus() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(3), list[str]()
        wide, narrow, late = (Work(name, began) for name in ("wide", "narrow", "late"))
        submit(pool, pool.share(2), wide)
        submit(pool, pool.share(1), narrow)
        submit(pool, pool.share(1), free(late))
        await running(wide)
        await running(narrow)
        await asyncio.sleep(0.01)
        assert sorted(began) == ["narrow", "wide"]
        narrow.free.set()
        await late.ended.wait()
        assert not wide.ended.is_set()
        wide.free.set()
        await wide.ended.wait()
        pool.close()

    asyncio.run(scenario())


def test_who_needs_many_cpus_is_not_overtaken_for_ever() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(2), list[str]()
        first, wide, narrow = (Work(name, began) for name in ("first", "wide", "narrow"))
        submit(pool, pool.share(1), first)
        await running(first)
        submit(pool, pool.share(2), free(wide))
        submit(pool, pool.share(1), free(narrow))
        await asyncio.sleep(0.01)
        first.free.set()
        await narrow.ended.wait()
        assert began == ["first", "wide", "narrow"]
        pool.close()

    asyncio.run(scenario())


def test_a_session_with_more_threads_than_cpus_takes_all_of_them() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(2), list[str]()
        work = free(Work("wide", began))
        submit(pool, pool.share(8), work)
        await asyncio.wait_for(work.ended.wait(), 10)
        pool.close()

    asyncio.run(scenario())


def test_what_runs_on_a_gpu_waits_for_no_cpu() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(1), list[str]()
        on_cpu, on_gpu = Work("cpu", began), free(Work("gpu", began))
        submit(pool, pool.share(1), on_cpu)
        await running(on_cpu)
        submit(pool, pool.share(0), on_gpu)
        await on_gpu.ended.wait()
        on_cpu.free.set()
        await on_cpu.ended.wait()
        pool.close()

    asyncio.run(scenario())


def test_the_model_that_has_used_least_goes_first() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(1), list[str]()
        hot, cold = pool.share(1), pool.share(1)
        used = [Work("hot", began) for _ in range(3)]
        submit(pool, hot, *used)
        await running(used[0])
        submit(pool, cold, *(free(Work("cold", began)) for _ in range(3)))
        await asyncio.sleep(0.05)  # this is what `hot` is charged, and `cold` may use first
        for work in used:
            work.free.set()
        await used[-1].ended.wait()
        assert began == ["hot", "cold", "cold", "cold", "hot", "hot"]
        pool.close()

    asyncio.run(scenario())


def test_who_was_idle_has_saved_nothing_up() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(1), list[str]()
        busy, idle = pool.share(1), pool.share(1)
        busy.used_ns = 10**12
        held = Work("busy", began)
        submit(pool, busy, held, *(free(Work("busy", began)) for _ in range(2)))
        await running(held)
        submit(pool, idle, free(Work("idle", began)))
        assert idle.used_ns == 10**12
        held.free.set()
        await asyncio.sleep(0.05)
        assert sorted(began) == ["busy", "busy", "busy", "idle"]
        pool.close()

    asyncio.run(scenario())


def test_a_job_that_hangs_holds_up_nobody() -> None:
    async def scenario() -> None:
        pool, began = ComputePool(1, lease_s=0.05), list[str]()
        hanging, other = Work("hanging", began), free(Work("other", began))
        submit(pool, pool.share(1), hanging)
        await running(hanging)
        submit(pool, pool.share(1), other)
        await asyncio.wait_for(other.ended.wait(), 10)
        assert not hanging.ended.is_set()
        hanging.free.set()
        await asyncio.wait_for(hanging.ended.wait(), 10)
        last = free(Work("last", began))
        submit(pool, pool.share(1), last)
        await asyncio.wait_for(last.ended.wait(), 10)
        pool.close()

    asyncio.run(scenario())


def test_the_threads_end_with_the_pool() -> None:
    async def scenario() -> None:
        before = set(threading.enumerate())
        pool, began = ComputePool(2), list[str]()
        works = [Work(str(number), began) for number in range(2)]
        submit(pool, pool.share(1), *works)
        for work in works:
            await running(work)
        for work in works:
            work.free.set()
            await work.ended.wait()
        threads = [thread for thread in set(threading.enumerate()) - before if thread.name == "compute"]
        assert threads
        pool.close()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()

    asyncio.run(scenario())


def test_a_job_that_never_ends_does_not_keep_the_process_from_ending_well() -> None:
    program = """
import asyncio, threading
from stn_serve.compute import ComputePool

class Hanging:
    def run(self): started.set(); threading.Event().wait()
    def finish(self): pass

started = threading.Event()

async def scenario():
    pool = ComputePool(1)
    pool.request(pool.share(1), Hanging)
    await asyncio.to_thread(started.wait)
    pool.close()
    print("the end")

asyncio.run(scenario())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "the end\n", "")


def test_a_job_that_ended_after_its_pool_leaves_the_exit_code_alone() -> None:
    program = """
import asyncio, sys, threading
from stn_serve.compute import ComputePool

class Slow:
    def run(self): started.set(); free.wait()
    def finish(self): pass

started, free = threading.Event(), threading.Event()

async def scenario():
    pool = ComputePool(1)
    pool.request(pool.share(1), Slow)
    await asyncio.to_thread(started.wait)
    pool.close()

asyncio.run(scenario())
free.set()
for thread in threading.enumerate():
    if thread.name == "compute":
        thread.join()
sys.exit(3)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 3, result.stderr
