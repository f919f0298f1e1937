"""`docs/metrics.md` names every metric that a server has, with its type and labels, and none that it has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from onnx_models import publish_ident
from served import Served, running

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
ELSEWHERE = {"model", "version", "le"}
"""Labels that the page explains once for all."""

Metrics = dict[str, tuple[str, set[str]]]
"""By name: type and labels."""


def documented() -> Metrics:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def scraped(served: Served) -> Metrics:
    metrics: Metrics = {}
    for line in urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, kind = line.split()
            labels: set[str] = set()
            metrics[name] = (kind, labels)
        elif not line.startswith("#"):
            labels |= set(re.findall(r'[{,](\w+)="', line)) - ELSEWHERE
    return metrics


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One to a Triton that is not there: what it counts of it is there."""
    with running(tmp_path_factory.mktemp("gateway"), "--engine", "triton", "--triton-url", "127.0.0.1:1") as served:
        yield served


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two: what their supervisor counts is there."""
    repository = tmp_path_factory.mktemp("workers")
    publish_ident(repository)
    with running(repository, "--workers", "2") as served:
        yield served


def test_the_page_lists_what_is_scraped(server: Served, gateway: Served, workers: Served) -> None:
    assert documented() == scraped(gateway) | scraped(workers) | scraped(server)


def test_what_alerts_look_at_exists(server: Served, gateway: Served, workers: Served) -> None:
    names = "|".join(scraped(gateway) | scraped(workers) | scraped(server))
    for word in re.findall(r"\b(?:nv|stn|process)_\w+", PAGE.read_text()):
        known = re.fullmatch(rf"(?:{names})(?:_bucket|_sum|_count)?", word)
        assert known or word.startswith(
            ("nv_gpu", "nv_energy", "nv_pinned", "nv_cache", "nv_cpu_", "process_", "stn_serve")
        )
