"""Reloads under load, as benchmarks/reloads.py measures them, a few of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reloads import copy_of_the_repository, reload_under_load


@pytest.mark.parametrize(("mode", "reloads"), [("explicit", 5), ("poll", 2)])
def test_reloads_under_load_lose_no_request_and_keep_no_memory(tmp_path: Path, mode: str, reloads: int) -> None:
    """It takes as long as so many versions take to be noticed and loaded while clients ask."""
    outcome = reload_under_load(copy_of_the_repository(tmp_path), mode, reloads, clients=2)
    assert outcome.load.errors == []
    assert outcome.load.sent == outcome.load.answered > 0
    assert outcome.load.versions == {str(version) for version in range(1, reloads + 2)}
    # A version takes some 15 MiB with its weights, arena and threads; at most one is still being retired.
    assert outcome.memory_mib[-1] - outcome.memory_mib[1] < 30
    assert outcome.threads[-1] <= outcome.threads[0] + 4
