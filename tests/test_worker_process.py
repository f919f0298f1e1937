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
