"""`docs/protocol-differences.md` out of the cases and their differences.

Written by `PYTHONPATH=tests python tests/conformance/document.py > docs/protocol-differences.md`.
"""

from __future__ import annotations

import sys

import cases_clients
import cases_grpc
import cases_http
from differences import DIFFERENCES
from targets import Refused

CASES = {case.name: case for case in [*cases_grpc.CASES, *cases_http.CASES, *cases_clients.CASES]}

INTRODUCTION = """# Differences from Triton

One suite, `tests/conformance`, asks our server and a real Triton 2.51 the same {count} things with the same models:
both transports, Triton's own clients, every datatype, streams, shared memory, compression, classes, and everything
that can be wrong with a request. These {differing} are answered differently, on purpose. Of messages the beginning is
shown.

Beyond the suite: a broken model or version hinders no other (Triton's server ends, or stops serving the model), and
the server is ready as long as one model can answer; a reload of several versions keeps those that have not changed,
replaces those that load, and says of the others why they are served as they were; a model is polled for by size and
inode as well as by time, and loaded only once its files stay the same; a load goes on when its client goes away.
Clients may pass tensors in shared memory only where the server is started with `--allow-shared-memory`; a BYTES element
must be UTF-8, as strings in ONNX are; BF16 is not served; a number in a JSON answer that is not finite is `null`; log
settings cover `log_info`, `log_warning`, `log_error` and `log_verbose_level`. A queue without `max_queue_size` holds at
most 1024 requests; a request is refused when its time in the queue is up, even while a batch runs, and where a model
sets `allow_timeout_override` the `timeout` of a request counts even if the model sets none. A request that would spend
more than half of its timeout or deadline in the queue is refused when it comes, where Triton lets it wait and expire.
`priority_queue_policy` of a level that `priority_levels` does not have is refused: it would have no effect.

| case | Triton 2.51 | stn-serve | why |
|---|---|---|---|
"""


def render() -> str:
    """The whole document."""
    lines = [INTRODUCTION.format(count=len(CASES), differing=len(DIFFERENCES))]
    for name, difference in DIFFERENCES.items():
        lines.append(f"| {name} | {_cell(CASES[name].expected)} | {_cell(difference.ours)} | {difference.reason} |\n")
    return "".join(lines)


def _cell(answer: object) -> str:
    match answer:
        case Refused(status, message):
            return f"{status}" + (f": {_escape(message)}" if message else "")
        case [str(), *_]:
            return ", ".join(f"`{word}`" for word in answer)
        case str():
            return f"`{answer}`"
        case _:
            return "answered"


def _escape(message: str) -> str:
    for character in "\\|<*_":
        message = message.replace(character, f"\\{character}")
    return message.strip()


if __name__ == "__main__":
    sys.stdout.write(render())
