from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stn_serve import calls
from stn_serve.arrivals import Arrivals
from stn_serve.batcher import Batcher
from stn_serve.compute import ComputePool
from stn_serve.errors import ModelFailure, Unavailable
from stn_serve.execution import Run
from stn_serve.request_queue import Answer
from stn_serve.scheduling import BatchingPolicy, QueuePolicy, Urgency
from stn_serve.statistics import Statistics

Array = NDArray[Any]

POISON = -1.0
POOLS: list[ComputePool] = []


@pytest.fixture(autouse=True)
def _end_threads() -> Iterator[None]:
    yield
    while POOLS:
        POOLS.pop().close()


@pytest.fixture
def no_lapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who arrives counts for as long as a slow machine takes."""
    monkeypatch.setattr(Arrivals, "LAPSE_S", 60.0)


@dataclass
class Doubling:
    """A model that doubles its rows, fails on `POISON`, and can be held while it runs."""

    batches: list[int] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    running: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.free.set()

    def __call__(self, inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
        self.batches.append(len(inputs["x"]))
        self.running.release()
        self.free.wait(10)
        if (inputs["x"] == POISON).any():
            raise ModelFailure("poisoned")
        return dict.fromkeys(outputs, inputs["x"] * 2)

    async def started(self) -> None:
        """Wait until a batch runs."""
        await asyncio.to_thread(self.running.acquire)


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)[:, None]}


def batcher(model: Run, statistics: Statistics | None = None, instances: int = 1, **policy: Any) -> Batcher:
    rules = BatchingPolicy(**{"max_batch_size": 4} | policy)
    POOLS.append(ComputePool(2))
    return Batcher("m", model, rules, statistics or Statistics(), POOLS[-1], instances=instances)


def ask(batching: Batcher, *values: float, timeout_us: int = 0, priority: int = 0) -> asyncio.Task[Answer]:
    urgency = Urgency(priority, timeout_us)
    return asyncio.ensure_future(batching.infer(rows(*values), ["y"], len(values), urgency))


async def hold(model: Doubling, batching: Batcher) -> asyncio.Task[Answer]:
    """A request that runs until the model is free."""
    model.free.clear()
    running = ask(batching, 1)
    await model.started()
    return running


def order_of(tasks: Sequence[asyncio.Task[Answer]]) -> list[int]:
    """Their numbers, in the order in which they will have ended."""
    order: list[int] = []
    for number, task in enumerate(tasks):
        task.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    return order


def values_of(answer: Answer) -> list[float]:
    values: list[float] = answer.outputs["y"][:, 0].tolist()
    return values


def test_requests_that_arrive_together_run_together() -> None:
    async def scenario() -> None:
        model, statistics = Doubling(), Statistics()
        batching = batcher(model, statistics)
        answers = await asyncio.gather(ask(batching, 1), ask(batching, 2, 3), ask(batching, 4), ask(batching, 5))
        assert [values_of(answer) for answer in answers] == [[2], [4, 6], [8], [10]]
        assert model.batches == [4, 1]
        assert statistics.execution_count == 2
        assert {size: batch.compute_infer.count for size, batch in statistics.batches.items()} == {4: 1, 1: 1}
        await batching.close()

    asyncio.run(scenario())


def test_a_request_alone_runs_without_a_copy() -> None:
    seen: list[Array] = []

    def remember(inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
        seen.append(inputs["x"])
        return dict.fromkeys(outputs, inputs["x"])

    async def scenario() -> None:
        batching = batcher(remember)
        request = rows(1, 2)
        await batching.infer(request, ["y"], 2)
        assert seen[0] is request["x"]
        await batching.close()

    asyncio.run(scenario())


def test_only_requests_of_one_shape_share_a_batch() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model)
        wide = asyncio.ensure_future(batching.infer({"x": np.ones((1, 3), np.float32)}, ["y"], 1))
        answers = await asyncio.gather(ask(batching, 1), wide, ask(batching, 2))
        assert [answer.outputs["y"].shape for answer in answers] == [(1, 1), (1, 3), (1, 1)]
        assert model.batches == [1, 2]
        await batching.close()

    asyncio.run(scenario())


def test_without_batching_each_request_runs_alone() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, max_batch_size=0)
        await asyncio.gather(*(ask(batching, value) for value in range(3)))
        assert model.batches == [1, 1, 1]
        await batching.close()

    asyncio.run(scenario())


def test_a_delay_gathers_company_and_a_full_batch_does_not_wait() -> None:
    async def scenario() -> None:
        model = Doubling()
        patient = batcher(model, max_queue_delay_us=60_000_000)
        first = ask(patient, 1)
        await asyncio.sleep(0.02)
        assert model.batches == []
        await asyncio.gather(first, *(ask(patient, value) for value in (2, 3, 4)))
        assert model.batches == [4]
        await patient.close()
        brief = batcher(model, max_queue_delay_us=1000)
        assert values_of(await ask(brief, 7)) == [14]
        await brief.close()

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, queue=QueuePolicy(max_queue_size=2))
        running = await hold(model, batching)
        waiting = [ask(batching, 2), ask(batching, 3)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2 for model 'm'"):
            await ask(batching, 4)
        model.free.set()
        assert [values_of(answer) for answer in await asyncio.gather(running, *waiting)] == [[2], [4], [6]]
        await batching.close()

    asyncio.run(scenario())


def test_a_request_expires_while_a_batch_runs() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, queue=QueuePolicy(timeout_us=10_000))
        running = await hold(model, batching)
        with pytest.raises(Unavailable, match="Request timeout expired"):
            await ask(batching, 2)
        assert not model.free.is_set()
        assert batching.pending_count == 0
        model.free.set()
        assert values_of(await running) == [2]
        assert model.batches == [1]
        await batching.close()

    asyncio.run(scenario())


def test_a_caller_that_goes_away_leaves_the_queue_and_its_neighbours_alone() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model)
        model.free.clear()
        in_batch = [ask(batching, 1), ask(batching, 2), ask(batching, 3)]
        await model.started()
        queued = [ask(batching, 4), ask(batching, 5)]
        await asyncio.sleep(0)
        in_batch[1].cancel()
        queued[0].cancel()
        await asyncio.sleep(0)
        assert batching.pending_count == 1
        model.free.set()
        answers = await asyncio.gather(*in_batch, *queued, return_exceptions=True)
        assert [type(answer) for answer in (answers[1], answers[3])] == [asyncio.CancelledError] * 2
        assert [values_of(answer) for answer in answers if isinstance(answer, Answer)] == [[2], [6], [10]]
        assert model.batches == [3, 1]
        await batching.close()

    asyncio.run(scenario())


def test_a_request_that_makes_its_batch_fail_fails_alone() -> None:
    async def scenario() -> None:
        model, statistics = Doubling(), Statistics()
        batching = batcher(model, statistics)
        answers = await asyncio.gather(*(ask(batching, value) for value in (1, POISON, 2, 3)), return_exceptions=True)
        assert isinstance(answers[1], ModelFailure)
        assert str(answers[1]) == "poisoned"
        assert [values_of(answer) for answer in answers if isinstance(answer, Answer)] == [[2], [4], [6]]
        assert model.batches == [4, 2, 1, 1, 2]
        assert {size: batch.compute_infer.count for size, batch in statistics.batches.items()} == {1: 1, 2: 1}
        await batching.close()

    asyncio.run(scenario())


def test_a_model_that_answers_with_the_wrong_number_of_rows_fails_the_batch() -> None:
    def shrink(inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
        return dict.fromkeys(outputs, inputs["x"][:0])

    async def scenario() -> None:
        batching = batcher(shrink)
        answers = await asyncio.gather(ask(batching, 1), ask(batching, 2), return_exceptions=True)
        assert all(isinstance(answer, ModelFailure) for answer in answers)
        assert "output 'y' has shape [0, 1], expected 1 rows" in str(answers[0])
        await batching.close()

    asyncio.run(scenario())


def test_instances_run_at_the_same_time() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, instances=2, max_batch_size=1)
        model.free.clear()
        asked = [ask(batching, 1), ask(batching, 2)]
        await model.started()
        await model.started()
        model.free.set()
        assert [values_of(answer) for answer in await asyncio.gather(*asked)] == [[2], [4]]
        await batching.close()

    asyncio.run(scenario())


def test_closing_finishes_what_waits_and_refuses_what_comes() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, max_batch_size=1)
        model.free.clear()
        asked = [ask(batching, 1), ask(batching, 2)]
        await model.started()
        closing = asyncio.ensure_future(batching.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="has stopped accepting"):
            await ask(batching, 3)
        model.free.set()
        assert [values_of(answer) for answer in await asyncio.gather(*asked)] == [[2], [4]]
        await closing

    asyncio.run(scenario())


def test_closing_ends_when_the_last_waiting_caller_goes_away() -> None:
    async def scenario() -> None:
        batching = batcher(Doubling(), max_queue_delay_us=60_000_000)
        asked = ask(batching, 1)
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(batching.close())
        await asyncio.sleep(0)
        asked.cancel()
        await asyncio.wait_for(closing, 5)

    asyncio.run(scenario())


LEVELS: dict[str, Any] = {"priority_levels": 3, "default_priority_level": 2}


def test_the_highest_priority_runs_first() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, max_batch_size=1, **LEVELS)
        model.free.clear()
        first = ask(batching, 0)
        await model.started()
        waiting = [ask(batching, 1, priority=priority) for priority in (3, 0, 1, 2, 7, 1)]
        order = order_of(waiting)
        await asyncio.sleep(0)
        model.free.set()
        await asyncio.gather(first, *waiting)
        assert order == [2, 5, 1, 3, 4, 0]
        await batching.close()

    asyncio.run(scenario())


def test_an_expired_request_may_run_after_the_others() -> None:
    async def scenario() -> None:
        model = Doubling()
        policy = QueuePolicy(delays_expired=True, allow_timeout_override=True)
        batching = batcher(model, max_batch_size=1, queue=policy)
        model.free.clear()
        first = ask(batching, 0)
        await model.started()
        waiting = [ask(batching, 1, timeout_us=1), ask(batching, 2), ask(batching, 3)]
        order = order_of(waiting)
        await asyncio.sleep(0.01)
        model.free.set()
        answers = await asyncio.gather(first, *waiting)
        assert [values_of(answer) for answer in answers] == [[0], [2], [4], [6]]
        assert order == [1, 2, 0]
        await batching.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("preserve_ordering", [False, True])
def test_answers_leave_in_the_order_of_their_requests_where_that_is_asked_for(preserve_ordering: bool) -> None:
    slow, quick = threading.Event(), threading.Event()

    def run(inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
        (slow if inputs["x"][0, 0] == 1 else quick).wait(10)
        return dict.fromkeys(outputs, inputs["x"] * 2)

    async def scenario() -> None:
        batching = batcher(run, instances=2, max_batch_size=1, preserve_ordering=preserve_ordering)
        asked = [ask(batching, 1), ask(batching, 2), ask(batching, 3)]
        order = order_of(asked)
        quick.set()
        if not preserve_ordering:
            await asyncio.gather(*asked[1:])
        slow.set()
        answers = await asyncio.gather(*asked)
        assert [values_of(answer) for answer in answers] == [[2], [4], [6]]
        assert order == ([0, 1, 2] if preserve_ordering else [1, 2, 0])
        await batching.close()

    asyncio.run(scenario())


def test_each_request_gets_the_outputs_it_asked_for() -> None:
    computed: list[list[str]] = []

    def run(inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
        computed.append(list(outputs))
        return {name: inputs["x"] * (1 + "abc".index(name)) for name in outputs}

    async def scenario() -> None:
        batching = batcher(run)
        asked = [batching.infer(rows(1), ["a", "b"], 1), batching.infer(rows(2, 3), ["c"], 2)]
        first, second = await asyncio.gather(*asked)
        assert computed == [["a", "b", "c"]]
        assert {name: array.tolist() for name, array in first.outputs.items()} == {"a": [[1]], "b": [[2]]}
        assert {name: array.tolist() for name, array in second.outputs.items()} == {"c": [[6], [9]]}
        await batching.close()

    asyncio.run(scenario())


def test_surplus_rows_of_a_bucket_are_never_answered() -> None:
    async def scenario() -> None:
        model, statistics = Doubling(), Statistics()
        batching = batcher(model, statistics, batch_buckets=(1, 4))
        answers = await asyncio.gather(ask(batching, 1), ask(batching, 2, 3))
        assert [values_of(answer) for answer in answers] == [[2], [4, 6]]
        assert values_of(await ask(batching, 5, 6)) == [10, 12]
        assert model.batches == [4, 4]
        assert sorted(statistics.batches) == [2, 3]
        await batching.close()

    asyncio.run(scenario())


def test_a_model_that_hangs_holds_up_neither_others_nor_the_end() -> None:
    async def scenario() -> None:
        pool = ComputePool(1, lease_s=0.01)
        hanging, model = Doubling(), Doubling()
        hanging.free.clear()
        rules = BatchingPolicy(max_batch_size=1)
        stuck = Batcher("stuck", hanging, rules, Statistics(), pool)
        alive = Batcher("alive", model, rules, Statistics(), pool)
        lost = [ask(stuck, 1), ask(stuck, 2)]
        await hanging.started()
        assert values_of(await asyncio.wait_for(ask(alive, 3), 5)) == [6]
        await stuck.close(0.01)
        for outcome in await asyncio.gather(*lost, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
        hanging.free.set()
        await alive.close()
        pool.close()

    asyncio.run(scenario())


def test_a_batch_that_has_lost_all_its_callers_is_stopped() -> None:
    async def scenario() -> None:
        started = threading.Semaphore(0)

        def run(_: Mapping[str, Array], __: Sequence[str], options: Any) -> dict[str, Array]:
            started.release()
            while not options.terminate:
                time.sleep(0.001)
            raise ModelFailure("stopped")

        batching = batcher(run)
        asked = [ask(batching, 1), ask(batching, 2)]
        await asyncio.to_thread(started.acquire)
        asked[0].cancel()
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(batching.close())
        await asyncio.sleep(0.01)
        assert not closing.done()
        asked[1].cancel()
        await asyncio.wait_for(closing, 10)

    asyncio.run(scenario())


def test_a_full_queue_is_known_before_work_is_spent() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, **LEVELS, level_queues={1: QueuePolicy(max_queue_size=1)})
        running = await hold(model, batching)
        batching.check_room(Urgency(priority=1))
        waiting = ask(batching, 2, priority=1)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 1"):
            batching.check_room(Urgency(priority=1))
        batching.check_room()
        model.free.set()
        await asyncio.gather(running, waiting)
        await batching.close()
        with pytest.raises(Unavailable, match="has stopped accepting"):
            batching.check_room()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("timeout_s", "deadline_s", "accepted"),
    [(None, None, True), (0.05, None, False), (60, None, True), (None, 0.05, False), (None, 60, True)],
)
def test_what_would_be_too_late_is_refused_at_once(
    timeout_s: float | None, deadline_s: float | None, accepted: bool
) -> None:
    async def scenario() -> None:
        model = Doubling()
        urgency = Urgency(timeout_us=round((timeout_s or 0) * 1e6))
        batching = batcher(model, max_batch_size=1, queue=QueuePolicy(allow_timeout_override=True))
        model.free.clear()
        asked = [ask(batching, number) for number in range(3)]
        await model.started()
        await asyncio.sleep(0.1)  # a batch takes so long
        model.free.set()
        await asyncio.wait(asked)
        model.free.clear()
        asked = [ask(batching, number) for number in range(2)]
        await model.started()
        if accepted:
            batching.check_room(urgency, deadline_s)
        else:
            with pytest.raises(Unavailable, match=r"would wait 0\.\d+ s in the queue of model 'm'"):
                batching.check_room(urgency, deadline_s)
        model.free.set()
        await asyncio.wait(asked)
        await batching.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_lapse")
def test_those_that_are_still_being_read_take_the_places_that_they_will_need() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, queue=QueuePolicy(max_queue_size=2))
        for _ in range(3):
            batching.expect(None)  # nothing waits: an instance is idle
        running = await hold(model, batching)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2"):
            batching.expect(None)
        batching.check_room()
        model.free.set()
        await running
        await batching.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_lapse")
def test_who_has_been_let_in_finds_room() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, queue=QueuePolicy(max_queue_size=2))
        model.free.clear()
        asked = [ask(batching, 1)]
        await model.started()
        let_in = [batching.expect(None) for _ in range(2)]
        for number, arrival in enumerate(let_in):
            with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2"):
                batching.expect(None)
            arrival.close()
            asked.append(ask(batching, number))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 2"):
            batching.expect(None)
        model.free.set()
        assert [values_of(answer) for answer in await asyncio.gather(*asked)] == [[2], [0], [2]]
        batching.expect(None).close()
        await batching.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_lapse")
def test_those_that_are_still_being_read_take_time_from_those_that_come_later() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, max_batch_size=1)
        model.free.clear()
        slow = ask(batching, 1)
        await model.started()
        await asyncio.sleep(0.1)
        model.free.set()
        await slow
        running = await hold(model, batching)
        waiting = ask(batching, 3)
        await asyncio.sleep(0)

        def let_in_many() -> None:
            for _ in range(200):
                batching.expect(10)

        with pytest.raises(Unavailable, match="would wait"):
            let_in_many()
        batching.check_room(remaining_s=10)
        model.free.set()
        await asyncio.gather(running, waiting)
        await batching.close()

    asyncio.run(scenario())


def test_of_a_model_with_priorities_whoever_is_to_be_read_is_let_in() -> None:
    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model, **LEVELS, level_queues={1: QueuePolicy(max_queue_size=1)})
        running = await hold(model, batching)
        waiting = ask(batching, 2, priority=1)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Exceeds maximum queue size of 1"):
            batching.check_room(Urgency(priority=1))
        batching.expect(None)
        model.free.set()
        await asyncio.gather(running, waiting)
        await batching.close()

    asyncio.run(scenario())


def test_whoever_runs_next_is_accepted_however_long_the_batches_before_took() -> None:
    """Or a request with little time would be refused for ever after a burst of long batches."""

    async def scenario() -> None:
        model = Doubling()
        batching = batcher(model)
        model.free.clear()
        slow = ask(batching, 1)
        await model.started()
        await asyncio.sleep(0.1)
        model.free.set()
        await slow
        with calls.Call("grpc", "ModelInfer", lambda: None, lambda: 0.05):
            assert values_of(await ask(batching, 2)) == [4]
        await batching.close()

    asyncio.run(scenario())


def test_a_batch_that_nobody_waited_for_does_not_make_the_next_seem_quick() -> None:
    async def scenario() -> None:
        started, free = threading.Semaphore(0), threading.Event()

        def run(inputs: Mapping[str, Array], outputs: Sequence[str], options: Any) -> dict[str, Array]:
            started.release()
            while not options.terminate and not free.is_set():
                time.sleep(0.001)
            return dict.fromkeys(outputs, inputs["x"])

        batching = batcher(run, max_batch_size=1)
        slow = ask(batching, 1)
        await asyncio.to_thread(started.acquire)
        await asyncio.sleep(0.2)
        free.set()
        await slow
        free.clear()
        await asyncio.to_thread(started.acquire, timeout=0)
        for _ in range(20):
            given_up = ask(batching, 2)
            await asyncio.to_thread(started.acquire)
            given_up.cancel()
            await asyncio.wait([given_up])
        running, waiting = ask(batching, 3), ask(batching, 4)
        await asyncio.to_thread(started.acquire)
        with pytest.raises(Unavailable, match="would wait"):
            batching.check_room(remaining_s=0.3)
        free.set()
        await asyncio.gather(running, waiting)
        await batching.close()

    asyncio.run(scenario())


@dataclass(frozen=True)
class Arrival:
    """One caller: when it comes, with how many rows, how urgent, and what becomes of it."""

    turns_before: int
    rows: int
    poisoned: bool
    cancelled_after: int | None
    urgency: Urgency


arrivals = st.lists(
    st.builds(
        Arrival,
        turns_before=st.integers(0, 3),
        rows=st.integers(1, 4),
        poisoned=st.sampled_from([False, False, False, True]),
        cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 4)),
        urgency=st.builds(Urgency, st.integers(0, 4), st.sampled_from([0, 0, 1, 500])),
    ),
    min_size=1,
    max_size=24,
)
policies = st.fixed_dictionaries(
    {
        "max_queue_delay_us": st.sampled_from([0, 200, 3000]),
        "preferred_batch_sizes": st.sampled_from([frozenset(), frozenset({2}), frozenset({2, 4})]),
        "batch_buckets": st.sampled_from([(), (1, 2, 4)]),
        "queue": st.builds(
            QueuePolicy,
            max_queue_size=st.sampled_from([3, 1024]),
            delays_expired=st.booleans(),
            allow_timeout_override=st.just(True),
        ),
    }
)
orders = st.sampled_from([LEVELS, {"preserve_ordering": True}, {}])


async def call(batching: Batcher, number: int, caller: Arrival) -> Answer:
    values = [float(number * 10 + row + 1) for row in range(caller.rows)]
    if caller.poisoned:
        values[0] = POISON
    return await batching.infer(rows(*values), ["y"], caller.rows, caller.urgency)


@settings(max_examples=100, deadline=None)
@given(arrivals, policies, orders, st.integers(1, 2))
def test_every_caller_is_answered_once_and_with_its_own_rows(
    callers: list[Arrival], policy: dict[str, Any], order: dict[str, Any], instances: int
) -> None:
    async def scenario() -> None:
        model, statistics, pool = Doubling(), Statistics(), ComputePool(2)
        rules = BatchingPolicy(max_batch_size=4, **policy, **order)
        batching = Batcher("m", model, rules, statistics, pool, instances=instances)
        tasks = []
        for number, caller in enumerate(callers):
            for _ in range(caller.turns_before):
                await asyncio.sleep(0)
            tasks.append(asyncio.ensure_future(call(batching, number, caller)))
            if caller.cancelled_after is not None:
                asyncio.get_running_loop().call_later(caller.cancelled_after / 5000, tasks[-1].cancel)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        for number, (caller, outcome) in enumerate(zip(callers, outcomes, strict=True)):
            if isinstance(outcome, Answer):
                assert not caller.poisoned
                assert values_of(outcome) == [2.0 * (number * 10 + row + 1) for row in range(caller.rows)]
            elif isinstance(outcome, asyncio.CancelledError):
                assert caller.cancelled_after is not None
            elif isinstance(outcome, ModelFailure):
                assert caller.poisoned
            else:
                assert isinstance(outcome, Unavailable)
        assert max(model.batches, default=0) <= 4
        assert batching.pending_count == 0
        await asyncio.wait_for(batching.close(), 20)
        pool.close()

    asyncio.run(scenario())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=20), st.integers(1, 4))
def test_what_waits_runs_in_the_order_of_its_priority(waiting: list[tuple[int, int]], max_batch_size: int) -> None:
    async def scenario() -> None:
        model, pool = Doubling(), ComputePool(1)
        ran: list[list[float]] = []

        def run(inputs: Mapping[str, Array], outputs: Sequence[str], _: object = None) -> dict[str, Array]:
            ran.append(inputs["x"][:, 0].tolist())
            return model(inputs, outputs)

        rules = BatchingPolicy(max_batch_size=max_batch_size, **LEVELS)
        batching = Batcher("m", run, rules, Statistics(), pool)
        model.free.clear()
        tasks = [ask(batching, 0)]
        await model.started()
        for number, (priority, count) in enumerate(waiting):
            tasks.append(ask(batching, *[float(number + 1)] * count, priority=priority))
        await asyncio.sleep(0)
        model.free.set()
        await asyncio.gather(*tasks)
        numbered = sorted((rules.level(priority), number + 1) for number, (priority, _) in enumerate(waiting))
        order = list(dict.fromkeys(value for batch in ran for value in batch))
        assert order == [0, *(number for _, number in numbered)]
        await batching.close()
        pool.close()

    asyncio.run(scenario())
