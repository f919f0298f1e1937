from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stn_serve.errors import Unavailable
from stn_serve.request_queue import Pending, RequestQueue
from stn_serve.scheduling import BatchingPolicy, QueuePolicy

SECOND_NS = 10**9


def request(rows: int = 1, level: int = 0, waited_s: float = 0, width: int = 1) -> Pending:
    loop = asyncio.get_event_loop_policy().new_event_loop()
    loop.close()
    arrived_ns = time.perf_counter_ns() - round(waited_s * SECOND_NS)
    return Pending({"x": np.zeros((rows, width))}, ["y"], rows, level, arrived_ns, asyncio.Future(loop=loop))


def queue(requests: Iterable[Pending], **policy: Any) -> RequestQueue:
    waiting = RequestQueue("m", BatchingPolicy(**{"max_batch_size": 8} | policy))
    for pending in requests:
        waiting.add(pending)
    return waiting


def chosen(rows: list[int], waited_s: float = 0, **policy: Any) -> tuple[list[int], bool]:
    """The rows of the requests that run, and whether they wait for company."""
    choice = queue([request(count, waited_s=waited_s) for count in rows], **policy).choose()
    return [pending.rows for pending in choice.requests], choice.wait_s > 0


# What follows is a table of core/src/dynamic_batch_scheduler.cc, GetDynamicBatch.
PREFERRED = {"preferred_batch_sizes": frozenset({3, 6})}
PATIENT = {"max_queue_delay_us": 60_000_000}


@pytest.mark.parametrize(
    ("rows", "policy", "expected"),
    [
        ([1, 1], {}, ([1, 1], False)),
        ([4, 4, 1], {}, ([4, 4], False)),
        ([5, 4], {}, ([5], False)),
        ([1] * 9, {}, ([1] * 8, False)),
        ([1, 1], PATIENT, ([1, 1], True)),
        ([4, 4, 1], PATIENT, ([4, 4], False)),
        ([5, 4], PATIENT, ([5], False)),
        ([9, 1], {"max_batch_size": 0}, ([9], False)),
        # The largest preferred size that requests come to.
        ([1] * 5, PREFERRED, ([1] * 3, False)),
        ([1] * 7, PREFERRED, ([1] * 6, False)),
        ([1] * 2, PREFERRED, ([1] * 2, False)),
        ([2, 2, 1], PREFERRED, ([2, 2, 1], False)),
        # None of them, and the next request would go beyond the largest: what comes before it.
        ([4, 3], PREFERRED, ([4], False)),
        ([7, 1], PREFERRED, ([7], False)),
        # With a delay, a batch that has a preferred size waits no more, and one that has not waits for it.
        ([1] * 5, PREFERRED | PATIENT, ([1] * 3, False)),
        ([1] * 2, PREFERRED | PATIENT, ([1] * 2, True)),
        ([4, 1], PREFERRED | PATIENT, ([4, 1], True)),
    ],
)
def test_what_runs_next(rows: list[int], policy: dict[str, Any], expected: tuple[list[int], bool]) -> None:
    assert chosen(rows, **policy) == expected


def test_what_has_waited_for_too_long_runs_as_it_is() -> None:
    assert chosen([1] * 5, waited_s=61, **PREFERRED | PATIENT) == ([1] * 5, False)
    assert chosen([1] * 2, waited_s=61, **PREFERRED | PATIENT) == ([1] * 2, False)


def test_a_batch_waits_for_what_its_oldest_request_has_left() -> None:
    pending = [request(level=2, waited_s=50), request(level=1, waited_s=20)]
    choice = queue(pending, priority_levels=2, default_priority_level=1, **PATIENT).choose()
    assert choice.requests == pending[::-1]
    assert 0 < choice.wait_s < 10


def test_another_shape_ends_a_batch() -> None:
    pending = [request(), request(), request(width=3), request()]
    assert queue(pending).choose().requests == pending[:2]
    assert queue(pending, **PATIENT).choose() == (pending[:2], 0)


def test_whose_caller_has_gone_does_not_run() -> None:
    pending = [request(), request()]
    pending[0].future.cancel()
    assert queue(pending).choose().requests == pending[1:]


def test_each_level_has_a_bound_of_its_own() -> None:
    levels = {1: QueuePolicy(max_queue_size=1)}
    waiting = queue(
        [request(level=1), request(level=2), request(level=2)],
        priority_levels=2,
        default_priority_level=2,
        queue=QueuePolicy(max_queue_size=2),
        level_queues=levels,
    )
    with pytest.raises(Unavailable, match="Exceeds maximum queue size of 1 for model 'm'"):
        waiting.check_room(1)
    with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2 for model 'm'"):
        waiting.check_room(2)
    waiting.discard(next(iter(waiting)))
    waiting.check_room(1)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=20))
def test_levels_run_in_order_and_the_postponed_last_of_theirs(arrivals: list[tuple[int, bool, bool]]) -> None:
    waiting = queue([], priority_levels=5, default_priority_level=3, max_batch_size=100)
    expected: dict[tuple[int, bool], list[Pending]] = {}
    for level, postponed, discarded in arrivals:
        pending = request(level=level)
        waiting.add(pending)
        if postponed:
            waiting.postpone(pending)
        if discarded:
            waiting.discard(pending)
        else:
            expected.setdefault((level, postponed), []).append(pending)
    in_order = [pending for _, group in sorted(expected.items()) for pending in group]
    assert list(waiting) == waiting.choose().requests == in_order
    assert len(waiting) == len(in_order)
    assert bool(waiting) == bool(in_order)
