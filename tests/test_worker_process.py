"""What a supervisor bears: a worker that cannot be started, and one that cannot report."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest

from stn_serve.channel import Channel
from stn_serve.errors import ConfigurationError, ServingError, Unavailable
from stn_serve.handover import door
from stn_serve.settings import ServerSettings
from stn_serve.supervisor import Supervisor
from stn_serve.worker_process import WorkerProcess


async def refuse(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_a_worker_that_the_system_does_not_start_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)

    async def start() -> None:
        before = open_files()
        with pytest.raises(ConfigurationError, match=r"cannot be started.*temporarily unavailable"):
            await WorkerProcess.start(ServerSettings(), {}, set())
        assert open_files() == before

    asyncio.run(start())


def test_workers_that_serve_go_on_while_another_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    monkeypatch.setattr("stn_serve.supervisor.FIRST_PAUSE_S", 0.001)
    ended = [asyncio.Event(), asyncio.Event()]

    class Worker:
        """Of the supervisor's collaborators this one alone is not real: a process that ends when it is told to."""

        metrics: tuple[()] = ()
        id = 1

        def __init__(self, number: int) -> None:
            self._number = number

        async def ended(self) -> str:
            await ended[self._number].wait()
            return "signal SIGKILL"

        async def report(self) -> None:
            pass

    async def supervise() -> None:
        supervisor = Supervisor(ServerSettings(workers=2))
        serving = cast("list[Any]", supervisor.workers)
        serving.extend(Worker(number) for number in range(2))
        for worker in serving:
            worker.statistics = supervisor._ended_statistics
        supervising = asyncio.ensure_future(supervisor.supervise())
        ended[0].set()
        await asyncio.sleep(0.1)  # several tries
        assert not supervising.done()
        assert len(supervisor.workers) == 1
        ended[1].set()
        with pytest.raises(ConfigurationError, match="cannot be started"):
            await supervising

    asyncio.run(supervise())


@pytest.mark.parametrize(
    ("error", "is_late"), [(ServingError("can't start new thread"), True), (Unavailable("it has ended"), False)]
)
def test_a_worker_that_cannot_report_gets_no_connections(error: ServingError, is_late: bool) -> None:
    class Refusing:
        async def call(self, *_: object) -> None:
            raise error

    ours, theirs = door()
    with ours, theirs:
        worker = WorkerProcess(cast("Any", type("Process", (), {"pid": 1})()), cast("Channel", Refusing()), ours)
        asyncio.run(worker.report())
        assert worker.is_late is is_late
