"""One call as it is told of when it has ended: who asked what, how it went, and where its time was spent.

The transports open a call, the data plane notes in it what it finds out. Nothing of what a caller sent is kept but
names and ids, and what an error says of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from stn_serve.errors import Cancelled, DeadlineExceeded, ServingError, Unavailable, Unsupported
from stn_serve.request_queue import Answer

logger = logging.getLogger(__name__)

MAX_ID = 128
MAX_ERROR = 500
"""Characters of what a caller chose that the log repeats."""

_current: ContextVar[Call | None] = ContextVar("call", default=None)


@dataclass(slots=True)
class Call:
    """What is known of it so far."""

    protocol: str
    operation: str
    model: str = ""
    version: str = ""
    request_id: str = ""
    """The caller's, or empty."""
    rows: int = 0
    failed_rows: int = 0
    """Images of a request that is answered for the others."""
    error: ServingError | None = None
    spent_ns: dict[str, int] = field(default_factory=dict)
    """By phase: of the images or rows of one call that run side by side, the slowest."""

    @property
    def id(self) -> str:
        """The caller's, or one that is made for it."""
        if not self.request_id:
            self.request_id = secrets.token_hex(8)
        return self.request_id[:MAX_ID]

    @property
    def status(self) -> str:
        """`OK`, or the name of the gRPC code of its error."""
        return self.error.grpc_code.name if self.error else "OK"

    def spend(self, phase: str, ns: int) -> None:
        """Note how long a phase took."""
        self.spent_ns[phase] = max(ns, self.spent_ns.get(phase, 0))


@contextmanager
def called(protocol: str, operation: str) -> Iterator[Call]:
    """A call for the time of a `with`; who answers an error inside says so in `Call.error`."""
    call = Call(protocol, operation)
    token = _current.set(call)
    started_ns = time.perf_counter_ns()
    try:
        yield call
    except asyncio.CancelledError:
        call.error = call.error or Cancelled("the caller has gone away")
        raise
    finally:
        _log(call, time.perf_counter_ns() - started_ns)
        _current.reset(token)


def current() -> Call | None:
    """The call that is being answered."""
    return _current.get()


def fail(error: ServingError) -> None:
    """The current call is answered with an error."""
    if call := _current.get():
        call.error = error


def note(model: str, version: str, request_id: str = "") -> None:
    """Which model the current call asks for."""
    if call := _current.get():
        call.model, call.version = model, version
        call.request_id = request_id or call.request_id


def name(request_id: str) -> None:
    """What its caller calls the current call."""
    if call := _current.get():
        call.request_id = request_id


def failed(rows: int) -> None:
    """Some images of the current call are answered with errors."""
    if call := _current.get():
        call.failed_rows += rows


@contextmanager
def spending(phase: str) -> Iterator[None]:
    """Note how long a phase of the current call takes."""
    started_ns = time.perf_counter_ns()
    yield
    if call := _current.get():
        call.spend(phase, time.perf_counter_ns() - started_ns)


def answered(rows: int, answer: Answer) -> None:
    """The model has answered some rows of the current call."""
    if call := _current.get():
        call.rows += rows
        call.spend("queue", answer.queue_ns)
        call.spend("compute", sum(answer.phases))


def _log(call: Call, elapsed_ns: int) -> None:
    level = _level(call)
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s", call.operation, call.status, extra={"fields": _fields(call, elapsed_ns)})


def _level(call: Call) -> int:
    """A warning where the server is at fault; callers' mistakes, haste and absence are information."""
    error = call.error
    if error is None:
        return logging.INFO if call.failed_rows else logging.DEBUG
    theirs = isinstance(error, Unavailable | DeadlineExceeded | Unsupported) or error.http_status < 500
    return logging.INFO if theirs else logging.WARNING


def _fields(call: Call, elapsed_ns: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "protocol": call.protocol,
        "operation": call.operation,
        "status": call.status,
        "model": call.model[:MAX_ID],
        "version": call.version,
        "rows": call.rows,
        "failed_rows": call.failed_rows,
        "duration_us": elapsed_ns // 1000,
        **{f"{phase}_us": ns // 1000 for phase, ns in call.spent_ns.items()},
        "error": str(call.error)[:MAX_ERROR] if call.error else "",
    }
    return {name: value for name, value in fields.items() if value or name == "duration_us"}
