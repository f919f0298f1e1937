"""nghttp2's load generator, which sends the same bytes again and again: HTTP to any server, and gRPC, framed here.

It looks at the status of HTTP alone; `ask_once` makes sure of an answer's content.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import httpx
import numpy as np

from benchmarks.load import Load, quantiles
from benchmarks.peers.peer import Call

WARM_UP_S = 1
PATIENCE_S = 60.0
CUT_OFF = -1
"""The status of what has no answer: at the end of the time at most one request of each caller."""


def ask(call: Call, protocol: str, concurrency: int, seconds: float) -> Load:
    """So many callers, each with a connection of its own, who wait for their answers.

    Raises:
        RuntimeError: a request failed, or nothing was answered.
    """
    with TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(_frame(call.body) if protocol == "grpc" else call.body)
        command = ["h2load", "-t", "1", "-c", str(concurrency), "-m", "1", "-d", str(body), f"--log-file={log}"]
        command += ["-D", f"{max(round(seconds), 1)}", f"--warm-up-time={WARM_UP_S:g}"]
        command += ["-p", "h2c" if protocol == "grpc" else "http/1.1"]
        command += [f"-H{name}: {value}" for name, value in {**_headers(protocol), **call.headers}.items()]
        done = subprocess.run(
            [*command, call.url],
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=seconds + PATIENCE_S,
        )
        if done.returncode or not log.exists():
            raise RuntimeError(f"h2load: {done.stderr.strip() or done.stdout[-500:]}")
        return parse(log.read_text(), concurrency)


def parse(log: str, concurrency: int) -> Load:
    """Of its log: a line for each request, with its start, in microseconds, its status, and how long it took.

    Raises:
        RuntimeError: a request failed, or there is none.
    """
    rows = np.array([line.split("\t") for line in log.splitlines()], np.int64).reshape(-1, 3)
    answered = rows[:, 1] == 200
    cut_off = rows[:, 1] == CUT_OFF
    failed = len(rows) - answered.sum() - min(cut_off.sum(), concurrency)
    if failed or not answered.any():
        statuses = Counter(rows[~answered, 1].tolist())
        raise RuntimeError(f"h2load: {failed} of {len(rows)} requests failed: {dict(statuses)} by status")
    starts, _, micros = rows[answered].T
    elapsed_s = ((starts + micros).max() - starts.min()) / 1e6
    return Load(float(answered.sum() / elapsed_s), *quantiles(micros / 1e3))


def ask_once(call: Call, protocol: str) -> bytes:
    """The body of one answer.

    Raises:
        grpc.RpcError, httpx.HTTPError: there is none.
    """
    if protocol == "http":
        headers = {**_headers(protocol), **call.headers}
        return httpx.post(call.url, content=call.body, headers=headers, timeout=PATIENCE_S).raise_for_status().content
    address, _, method = call.url.removeprefix("http://").partition("/")
    with grpc.insecure_channel(address) as channel:
        return bytes(channel.unary_unary(f"/{method}", bytes, bytes)(call.body, timeout=PATIENCE_S))


def _headers(protocol: str) -> dict[str, str]:
    if protocol == "grpc":
        return {"content-type": "application/grpc", "te": "trailers"}
    return {"content-type": "application/octet-stream"}


def _frame(message: bytes) -> bytes:
    """Uncompressed, with its length."""
    return b"\0" + len(message).to_bytes(4, "big") + message
