from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stn_serve.pace import Pace

SECOND_NS = 10**9


def test_nothing_is_known_before_the_first_batch() -> None:
    pace = Pace()
    pace.work(0)
    assert pace.seconds(100, 100) == 0


def test_it_is_the_time_between_batches_and_not_that_of_pauses() -> None:
    pace = Pace()
    for start in (0, 50 * SECOND_NS, 900 * SECOND_NS):
        pace.work(start)
        pace.finish(start + 2 * SECOND_NS, 1)
        pace.finish(start + 4 * SECOND_NS, 1)
        pace.rest()
        pace.finish(start + 30 * SECOND_NS, 1)
    assert pace.seconds(3, 3) == pytest.approx(6)


def test_instances_side_by_side_are_twice_as_fast() -> None:
    pace = Pace()
    pace.work(0)
    pace.work(0)
    for second in range(1, 20):
        pace.finish(2 * second * SECOND_NS, 1)
        pace.finish(2 * second * SECOND_NS, 1)
    assert pace.seconds(1, 1) == pytest.approx(1, rel=0.15)


def test_batches_that_were_broken_off_say_nothing() -> None:
    pace = Pace()
    pace.skip(0)
    pace.work(0)
    pace.finish(4 * SECOND_NS, 1)
    for second in (5, 6, 7):
        pace.skip(second * SECOND_NS)
    assert pace.seconds(1, 1) == pytest.approx(4)
    pace.finish(11 * SECOND_NS, 1)
    assert pace.seconds(1, 1) == pytest.approx(4)


def test_it_soon_forgets_what_was() -> None:
    pace, now = Pace(), 0
    pace.work(now)
    for batch_s in [10] * 20 + [1] * 20:
        now += batch_s * SECOND_NS
        pace.finish(now, 1)
    assert pace.seconds(1, 1) == pytest.approx(1, rel=0.15)


@given(st.lists(st.integers(1, 64), min_size=2, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_small_batches_tell_how_long_large_ones_take(sizes: list[int], batch_s: float, row_s: float) -> None:
    assume(len(set(sizes[-10:])) > 1)
    pace, now = Pace(), 0
    pace.work(now)
    for rows in sizes:
        now += round((batch_s + rows * row_s) * SECOND_NS)
        pace.finish(now, rows)
    assert pace.seconds(3, 3 * 64) == pytest.approx(3 * (batch_s + 64 * row_s), rel=1e-4, abs=1e-4)


@given(st.integers(1, 64), st.lists(st.floats(0, 10), min_size=1, max_size=30))
def test_of_batches_of_one_size_the_time_of_each_is_known(rows: int, times_s: list[float]) -> None:
    pace, now = Pace(), 0
    pace.work(now)
    for batch_s in times_s:
        now += round(batch_s * SECOND_NS)
        pace.finish(now, rows)
    assert pace.seconds(2, 500) == pytest.approx(2 * pace.usual_s)
    assert min(times_s) - 1e-6 <= pace.usual_s <= max(times_s) + 1e-6


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), min_size=1, max_size=30), st.integers(1, 9))
def test_more_to_do_never_takes_less_time(batches: list[tuple[int, float]], count: int) -> None:
    pace, now = Pace(), 0
    pace.work(now)
    for rows, batch_s in batches:
        now += round(batch_s * SECOND_NS)
        pace.finish(now, rows)
    assert 0 <= pace.seconds(count, count) <= pace.seconds(count, 9 * count) + 1e-9
    assert pace.seconds(count, 9 * count) <= pace.seconds(count + 1, 9 * count) + 1e-9
