"""The log of the process, on stderr: lines for people, or JSON for machines.

A thread of its own writes it. A full disk, or a pipe that nobody reads, costs lines and holds up no request; what is
lost is counted.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import sys
import threading
import time
from datetime import UTC, datetime

from stn_serve import calls

MAX_WAITING = 10_000
"""Lines."""
LAST_LINES_S = 1.0
"""How long an ending process waits for its last lines to be written."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(level: str, form: str) -> None:
    """Send everything that is logged in this process, also by uvicorn and gRPC, to stderr."""
    writer = LogWriter(sys.stderr.fileno())
    writer.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    # `debug` is about us: Pillow, for one, would write what it finds in callers' images.
    logging.basicConfig(level=max(number, logging.INFO), handlers=[writer], force=True)
    logging.getLogger("stn_serve").setLevel(number)
    # uvicorn tells of its own start and stop, which are the server's.
    logging.getLogger("uvicorn").setLevel(max(number, logging.WARNING))
    # Where a caller goes away while it is answered, gRPC's library logs a traceback; the call itself is logged by us.
    logging.getLogger("grpc._cython.cygrpc").addFilter(_concerns_us)
    logging.captureWarnings(capture=True)


def _concerns_us(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("ExecuteBatchError")


def lost_lines() -> int:
    """Lines that could not be written."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))


class LogWriter(logging.Handler):
    """Writes lines to a file descriptor, never making the caller wait."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.lost = 0
        self._descriptor = descriptor
        self._waiting: queue.Queue[str | threading.Event] = queue.Queue(MAX_WAITING)
        # A daemon: a write that never returns must not keep the process from ending.
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line."""
        try:
            self._waiting.put_nowait(self.format(record))
        except queue.Full:
            self.lost += 1

    def flush(self) -> None:
        """Wait for what is queued, but not for ever; `logging` calls it when the process ends."""
        reached = threading.Event()
        deadline = time.monotonic() + LAST_LINES_S
        try:
            self._waiting.put(reached, timeout=LAST_LINES_S)
        except queue.Full:
            return
        reached.wait(max(0.0, deadline - time.monotonic()))

    def _write_all(self) -> None:
        while True:
            line = self._waiting.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._write(f"{line}\n".encode("utf-8", "backslashreplace"))
            except OSError:
                self.lost += 1

    def _write(self, data: bytes) -> None:
        # Not through sys.stderr: an ending interpreter would wait for its lock.
        while data:
            data = data[os.write(self._descriptor, data) :]


class ConsoleFormatter(logging.Formatter):
    """One line for people, and a traceback where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Fields as `name=value`; what callers chose can neither begin a line nor colour one."""
        words = [super().formatMessage(record), *(f"{name}={value}" for name, value in _fields(record).items())]
        return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), " ".join(words))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, logger, message, the fields, and the traceback as `exception`."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """The id of the request it is about, and what it says beside its message."""
    call = calls.current()
    return {**({"request_id": call.id} if call else {}), **getattr(record, "fields", {})}
