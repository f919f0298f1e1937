from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_serve.arrivals import Arrival, Arrivals


@pytest.fixture(autouse=True, scope="module")
def _no_lapse() -> Iterator[None]:
    """Each counts for as long as a slow machine takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arrivals, "LAPSE_S", 60.0)
        yield


@given(st.lists(st.integers(0, 20), max_size=40))
def test_each_counts_until_it_is_closed(steps: list[int]) -> None:
    """Above the number of those that arrive, one more comes; below, that one is closed, perhaps again."""
    arrivals, all_of_them, closed = Arrivals(), list[Arrival](), set[int]()
    for step in steps:
        if step < len(all_of_them):
            all_of_them[step].close()
            closed.add(step)
        else:
            all_of_them.append(arrivals.expect())
        assert len(arrivals) == len(all_of_them) - len(closed)


def test_whoever_is_slow_to_send_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals = Arrivals()
    monkeypatch.setattr(Arrivals, "LAPSE_S", 0.0)
    slow = arrivals.expect()
    time.sleep(0.001)
    monkeypatch.undo()
    arrivals.expect()
    assert len(arrivals) == 1
    slow.close()
    assert len(arrivals) == 1
