"""One call as it is told of when it has ended: who asked what, how it went, and where its time was spent.

The transports open a call, the data plane notes in it what it finds out. Nothing of what a caller sent is kept but
names and ids, and what an error says of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Self

from stn_serve.errors import Cancelled, DeadlineExceeded, ServingError, Unavailable, Unsupported
from stn_serve.request_queue import Answer

logger = logging.getLogger(__name__)

MAX_ID = 128
MAX_ERROR = 500
"""Characters of what a caller chose that the log repeats."""

Headers = Callable[[], Iterable[tuple[str | bytes, str | bytes]] | None]
"""Names and values that came with a call, asked for only if somebody wants to know."""

_current: ContextVar[Call | None] = ContextVar("call", default=None)


@dataclass(slots=True)
class Call:
    """What is known of it so far. Times are those of `time.perf_counter_ns`."""

    protocol: str
    operation: str
    headers: Headers
    remaining_s: Callable[[], float | None] = lambda: None
    """How long its caller still waits; None for one that does not say."""
    model: str = ""
    version: str = ""
    request_id: str = ""
    """The caller's, or empty."""
    rows: int = 0
    failed_rows: int = 0
    """Images of a request that is answered for the others."""
    error: ServingError | None = None
    phases: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, begin and end; those of several images run side by side."""
    began_ns: int = field(default_factory=time.perf_counter_ns)
    ended_ns: int = 0
    _before: Token[Call | None] | None = None

    def __enter__(self) -> Self:
        """It is the current call for the time of a `with`; who answers an error inside tells `fail`."""
        self._before = _current.set(self)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            self.error = self.error or Cancelled("the caller has gone away")
        self.ended_ns = time.perf_counter_ns()
        _log(self, _sink(self) if _sink else "")
        if self._before:
            _current.reset(self._before)

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

    @property
    def message(self) -> str:
        """Of its error, or empty."""
        return str(self.error)[:MAX_ERROR] if self.error else ""

    def header(self, name: str) -> str:
        """What came under a name in lower case, or empty."""
        for key, value in self.headers() or ():
            if _text(key) == name:
                return _text(value)
        return ""


Sink = Callable[[Call], str]
"""Takes a call that has ended, and returns the id of its trace."""

_sink: Sink | None = None


def trace_with(sink: Sink | None) -> None:
    """Where calls of this process that have ended also go; as with handlers of logs, there is one for all."""
    global _sink
    _sink = sink


def current() -> Call | None:
    """The call that is being answered."""
    return _current.get()


def remaining_s() -> float | None:
    """How long the caller of the current call still waits; None where it does not say, or there is none."""
    call = _current.get()
    return call.remaining_s() if call else None


def fail(error: ServingError) -> None:
    """The current call is answered with an error: with what it says, no longer with where it came from."""
    forget_frames(error)
    if call := _current.get():
        call.error = error


def forget_frames(error: BaseException | None) -> None:
    """Of an error that is kept: who answers with it holds it, its frames hold who answers and what was asked.

    Together they would wait for the garbage collector, which under overload would stop the server for long.
    """
    while error:
        error.__traceback__ = None
        error = error.__context__


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
    began_ns = time.perf_counter_ns()
    yield
    if call := _current.get():
        call.phases.append((phase, began_ns, time.perf_counter_ns()))


def answered(rows: int, arrived_ns: int, answer: Answer) -> None:
    """The model has answered some rows of the current call, which arrived at its queue then."""
    if call := _current.get():
        call.rows += rows
        computing_ns = arrived_ns + answer.queue_ns
        call.phases.append(("queue", arrived_ns, computing_ns))
        call.phases.append(("compute", computing_ns, computing_ns + sum(answer.phases)))


def _log(call: Call, trace_id: str) -> None:
    level = _level(call)
    if logger.isEnabledFor(level):
        logger.log(level, "%s %s", call.operation, call.status, extra={"fields": _fields(call, trace_id)})


def _level(call: Call) -> int:
    """A warning where the server is at fault; callers' mistakes, haste and absence are information."""
    error = call.error
    if error is None:
        return logging.INFO if call.failed_rows else logging.DEBUG
    theirs = isinstance(error, Unavailable | DeadlineExceeded | Unsupported) or error.http_status < 500
    return logging.INFO if theirs else logging.WARNING


def _fields(call: Call, trace_id: str) -> dict[str, object]:
    fields: dict[str, object] = {
        "protocol": call.protocol,
        "operation": call.operation,
        "status": call.status,
        "model": call.model[:MAX_ID],
        "version": call.version,
        "rows": call.rows,
        "failed_rows": call.failed_rows,
        "duration_us": (call.ended_ns - call.began_ns) // 1000,
        **_longest_us(call),
        "error": call.message,
        "trace_id": trace_id,
    }
    return {name: value for name, value in fields.items() if value or name == "duration_us"}


def _longest_us(call: Call) -> dict[str, int]:
    """By phase: of images that ran side by side, the one that took longest."""
    longest: dict[str, int] = {}
    for phase, began_ns, ended_ns in call.phases:
        name = f"{phase}_us"
        longest[name] = max((ended_ns - began_ns) // 1000, longest.get(name, 0))
    return longest


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")
