from __future__ import annotations

import pytest

from stn_serve.pace import Pace

SECOND_NS = 10**9


def test_nothing_is_known_before_the_first_batch() -> None:
    pace = Pace()
    pace.work(0)
    assert pace.seconds(100) == 0


def test_it_is_the_time_between_batches_and_not_that_of_pauses() -> None:
    pace = Pace()
    for start in (0, 50 * SECOND_NS, 900 * SECOND_NS):
        pace.work(start)
        pace.finish(start + 2 * SECOND_NS)
        pace.finish(start + 4 * SECOND_NS)
        pace.rest()
        pace.finish(start + 30 * SECOND_NS)
    assert pace.seconds(3) == pytest.approx(6)


def test_instances_side_by_side_are_twice_as_fast() -> None:
    pace = Pace()
    pace.work(0)
    pace.work(0)
    for second in range(1, 20):
        pace.finish(2 * second * SECOND_NS)
        pace.finish(2 * second * SECOND_NS)
    assert pace.seconds(1) == pytest.approx(1, rel=0.15)


def test_batches_that_were_broken_off_say_nothing() -> None:
    pace = Pace()
    pace.skip(0)
    pace.work(0)
    pace.finish(4 * SECOND_NS)
    for second in (5, 6, 7):
        pace.skip(second * SECOND_NS)
    assert pace.seconds(1) == pytest.approx(4)
    pace.finish(11 * SECOND_NS)
    assert pace.seconds(1) == pytest.approx(4)


def test_it_soon_forgets_what_was() -> None:
    pace, now = Pace(), 0
    pace.work(now)
    for batch_s in [10] * 20 + [1] * 20:
        now += batch_s * SECOND_NS
        pace.finish(now)
    assert pace.seconds(1) == pytest.approx(1, rel=0.15)
