from __future__ import annotations

import atexit
import os

# Before torch is imported, and for every process that a test starts: the networks of the tests are so small that
# threads cost more than they bring, and on a busy machine they spend their time waiting for each other.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx_models import publish_ident, publish_vision
from served import Served, running

from stn_serve import compute


def pytest_sessionfinish() -> None:
    """A job that a test left hanging must not end this process with 0, whatever has failed."""
    atexit.unregister(compute._leave)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the models `ident` and `vision`, and one that is broken."""
    repository: Path = tmp_path_factory.mktemp("repository")
    publish_ident(repository)
    publish_vision(repository)
    (repository / "broken").mkdir()
    (repository / "broken" / "config.pbtxt").write_text("max_batch: 3")
    with running(repository) as served:
        yield served


@pytest.fixture(scope="session")
def vision_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with one model, `vision`, which clients need not name."""
    repository = tmp_path_factory.mktemp("vision")
    publish_vision(repository)
    with running(repository) as served:
        yield served
