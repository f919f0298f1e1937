"""Real Tritons with our models, gateways before them, and callers who count."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import urllib3
from PIL import Image
from served import Served, running

from benchmarks.real_triton import NotAvailable, Triton
from stn_serve.client import Client
from stn_serve.errors import ServingError

PATIENCE_S = 30.0
"""On a busy machine everything takes long."""


@contextmanager
def running_tritons(*repositories: tuple[Path, Sequence[str]], flags: Sequence[str] = ()) -> Iterator[list[Triton]]:
    """A Triton for each repository and its models, started side by side; where there is none the tests are skipped."""
    with ExitStack() as stack:
        try:
            tritons = [Triton(repository, models, flags) for repository, models in repositories]
            for triton in tritons:
                triton.launch()
                stack.callback(triton.kill)
            for triton in tritons:
                triton.wait_until_ready()
        except NotAvailable as reason:
            pytest.skip(f"no real Triton here: {reason}")
        yield tritons


@contextmanager
def running_gateway(directory: Path, tritons: Sequence[Triton], *flags: str) -> Iterator[Served]:
    """A gateway for the time of a `with`; it must end well."""
    url = ",".join(triton.grpc for triton in tritons)
    with running(directory, "--engine", "triton", "--triton-url", url, *flags) as served:
        yield served


def picture(brightness: int = 200) -> bytes:
    """A PNG."""
    buffer = BytesIO()
    Image.fromarray(np.full((20, 30), brightness, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def scrape(served: Served) -> dict[str, float]:
    """The gateway's metrics by name, behind it the replica or the reason where there is one; models added up."""
    text = urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if line.startswith(("stn_triton", "nv_inference")) and "_bucket" not in line:
            name, _, value = line.rpartition(" ")
            label = re.search(r'(?:replica|reason)="([^"]+)"', name)
            found[name.partition("{")[0] + (f" {label[1]}" if label else "")] += float(value)
    return found


def index(served: Served) -> list[dict[str, str]]:
    """The repository index."""
    return urllib3.request("POST", f"http://{served.http}/v2/repository/index", body=b"{}").json()  # type: ignore[no-any-return]


def is_ready(served: Served, path: str = "/v2/health/ready") -> bool:
    """Whether the gateway, or a model, says so."""
    return urllib3.request("GET", f"http://{served.http}{path}", retries=False).status == 200


def wait_until(condition: Callable[[], bool]) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


@dataclass
class Load:
    """Callers who ask one after the other and never again, so that what is lost shows."""

    address: str
    model: str = ""
    callers: int = 8
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sent(self) -> int:
        """Answered or not."""
        return self.answered + self.failures.total()

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the time of a `with`, and until the last answer."""
        threads = [threading.Thread(target=self._ask) for _ in range(self.callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more are answered."""
        enough = self.answered + more
        wait_until(lambda: self.answered >= enough)

    def _ask(self) -> None:
        image = picture()
        with Client(self.address, retries=0, timeout_s=PATIENCE_S) as client:
            while not self._stopped.is_set():
                try:
                    client.predict(image, model=self.model)
                except ServingError as error:
                    with self._lock:
                        self.failures[f"{type(error).__name__}: {error}"] += 1
                    time.sleep(0.05)  # rather than spin where nobody is there any more
                else:
                    with self._lock:
                        self.answered += 1
