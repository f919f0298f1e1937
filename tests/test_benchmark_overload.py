from __future__ import annotations

import asyncio

import pytest

from benchmarks import overload


def test_it_overloads_a_server_and_counts_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "WARM_UP_S", 0.2)
    monkeypatch.setattr(overload, "CAPACITY_S", 0.5)
    measured = asyncio.run(overload.measure("digits", seconds=1, factor=3))
    assert measured.flood.outcomes.count == max(1, round(3 * measured.capacity))
    assert measured.flood.outcomes.failed == 0
    assert measured.probe.outcomes.count == overload.PROBES_PER_S
    assert "| failed otherwise | 0 |" in overload.render("command", "", [measured])
