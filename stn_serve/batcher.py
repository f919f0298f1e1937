"""Requests queue here and run together.

A request runs as soon as one of the model's instances is free and it is the model's turn on the CPUs (see `compute`),
with whatever else waits, up to `max_batch_size` rows; only `max_queue_delay_us` makes a batch wait for company, counted
from its first request. Each caller awaits its own future: one that is cancelled or expires leaves the queue, and no
neighbour notices. A batch that has lost all its callers is stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from numpy.typing import NDArray

from stn_serve import calls
from stn_serve.arrivals import Arrival, Arrivals
from stn_serve.compute import ComputePool
from stn_serve.errors import ServingError, Unavailable
from stn_serve.execution import Execution, Run
from stn_serve.input_buffers import InputBuffers
from stn_serve.pace import Pace
from stn_serve.request_queue import Answer, Pending, RequestQueue
from stn_serve.scheduling import AS_CONFIGURED, BatchingPolicy, Urgency
from stn_serve.statistics import Statistics

Array = NDArray[Any]

TRUSTED = 0.5
"""A request is accepted if its wait is thought to take this part of its time at most: what is thought is not exact."""

STOPPING_S = 1.0
"""How long a batch may take to end that has been told to."""


class Batcher:
    """The queue of one version of a model, and its turns in the pool of threads. Used on one event loop."""

    def __init__(
        self,
        name: str,
        run: Run,
        policy: BatchingPolicy,
        statistics: Statistics,
        pool: ComputePool,
        *,
        instances: int = 1,
        cpus: int = 1,
    ) -> None:
        self._name = name
        self._run = run
        self._policy = policy
        self._statistics = statistics
        self._pool = pool
        self._share = pool.share(cpus)
        self._queue = RequestQueue(name, policy)
        self._arrivals = Arrivals()
        self._idle = [InputBuffers() for _ in range(instances)]
        self._unanswered: dict[Execution, None] = {}
        self._pace = Pace()
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending_count(self) -> int:
        """Requests that wait to run."""
        return len(self._queue)

    def check_room(self, urgency: Urgency = AS_CONFIGURED, remaining_s: float | None = None) -> None:
        """Whether a request would be accepted now, to be asked before work is spent on it.

        Args:
            urgency: Its place in the queue.
            remaining_s: How long its caller still waits; None for one that does not say.

        Raises:
            Unavailable: the queue is full, the request would wait for too long in it, or the batcher is closing.
        """
        self._check(urgency, remaining_s, 0)

    def expect(self, remaining_s: float | None) -> Arrival:
        """Let in a request that is still to be read: until what is returned is closed, it counts among those that wait.

        Of a model with priorities every request is let in: which place it wants is not known yet.

        Raises:
            Unavailable: as `check_room`.
        """
        if not self._policy.priority_levels:
            waits = bool(self._queue) or not self._idle
            self._check(AS_CONFIGURED, remaining_s, len(self._arrivals) if waits else 0)
        return self._arrivals.expect()

    async def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int, urgency: Urgency = AS_CONFIGURED
    ) -> Answer:
        """Run one request of `rows` rows among others; `outputs` are the names to compute.

        Raises:
            Unavailable: as `check_room`, or the request waited too long.
            ModelFailure: the model failed with this request.
        """
        self.check_room(urgency, calls.remaining_s())
        loop = asyncio.get_running_loop()
        level = self._policy.level(urgency.priority)
        request = Pending(inputs, outputs, rows, level, time.perf_counter_ns(), loop.create_future())
        self._queue.add(request)
        timeout_s = self._policy.queue_of(level).timeout_s(urgency.timeout_us)
        if timeout_s is not None:
            request.expiry = loop.call_later(timeout_s, self._expire, request)
        self._ask()
        try:
            return await request.future
        except asyncio.CancelledError:
            self._abandon_forsaken()
            raise
        finally:
            self._remove(request)
            self._settle_drained()
            # An error's traceback holds this frame: with the request in it, both would wait for the garbage collector,
            # and with them the model that they ran on.
            del request

    async def close(self, grace_s: float | None = None) -> None:
        """Refuse what comes and finish what waits and runs; what has not ended after `grace_s` is refused and stopped.

        None waits for ever. A model may hang where it cannot be stopped: that is not waited for.
        """
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            self._settle_drained()
        await asyncio.wait([self._drained], timeout=grace_s)
        for request in [*self._queue, *(request for batch in self._unanswered for request in batch.requests)]:
            _fail(request, self._stopping())
        self._abandon_forsaken()
        await asyncio.wait([self._drained], timeout=STOPPING_S)

    def _abandon_forsaken(self) -> None:
        for batch in self._unanswered:
            if all(request.future.done() for request in batch.requests):
                batch.abandon()

    def _check(self, urgency: Urgency, remaining_s: float | None, arriving: int) -> None:
        if self._drained is not None:
            raise self._stopping()
        level = self._policy.level(urgency.priority)
        self._queue.check_room(level, arriving)
        allowed_s = self._allowed_s(level, urgency, remaining_s)
        if allowed_s is not None:
            self._check_time(level, allowed_s, arriving)

    def _allowed_s(self, level: int, urgency: Urgency, remaining_s: float | None) -> float | None:
        """How long a request may wait, by its timeout and its caller's deadline; None without either."""
        timeout_s = self._policy.queue_of(level).timeout_s(urgency.timeout_us)
        if remaining_s is None:
            return timeout_s
        answer_s = remaining_s - self._pace.usual_s
        return answer_s if timeout_s is None else min(timeout_s, answer_s)

    def _check_time(self, level: int, allowed_s: float, arriving: int) -> None:
        """Refuse now what would be too late, with what waits before it: its caller may yet ask elsewhere.

        Whoever would run next is accepted: if nobody were, the pace of long batches would be remembered for ever.
        """
        if not any(self._queue.before(level)):
            return
        wait_s = self._running_s() + self._pace.seconds(*self._queue.before(level, arriving))
        allowed_s = max(allowed_s, 0.0)
        if wait_s > allowed_s * TRUSTED:
            raise Unavailable(
                f"Request would wait {wait_s:.2g} s in the queue of model '{self._name}', "
                f"and its timeout or deadline leaves {allowed_s:.2g} s"
            )

    def _running_s(self) -> float:
        """Until an instance is idle: as long as the batch that began last takes, at most."""
        return 0.0 if self._idle else self._pace.seconds(1, next(reversed(self._unanswered)).rows)

    def _stopping(self) -> Unavailable:
        return Unavailable(f"Server is stopping, model '{self._name}' has stopped accepting new inference requests")

    def _remove(self, request: Pending) -> None:
        self._queue.discard(request)
        if request.expiry:
            request.expiry.cancel()

    def _expire(self, request: Pending) -> None:
        if self._policy.queue_of(request.level).delays_expired:
            self._queue.postpone(request)
        else:
            self._queue.discard(request)
            _fail(request, Unavailable(f"Request timeout expired in the queue of model '{self._name}'"))

    def _ask(self) -> None:
        """Ask for a turn, where there is something to run and an instance to run it."""
        if self._idle and self._queue:
            self._pool.request(self._share, self._next_execution)

    def _next_execution(self) -> Execution | None:
        """The model's turn: its next batch, unless that should still wait for company."""
        if self._timer:
            self._timer.cancel()
        if not self._idle:
            return None
        requests, wait_s = self._queue.choose()
        if wait_s > 0:
            self._pace.rest()
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._ask)
        if wait_s > 0 or not requests:
            return None
        for request in requests:
            self._remove(request)
        self._pace.work(time.perf_counter_ns())
        execution = Execution(self._name, self._run, self._policy, requests, self._idle.pop(), self._finish)
        self._unanswered[execution] = None
        self._ask()  # for another instance, if there is more to do
        return execution

    def _finish(self, execution: Execution) -> None:
        self._idle.append(execution.buffers)
        now_ns = time.perf_counter_ns()
        if execution.is_abandoned:
            self._pace.skip(now_ns)
        else:
            self._pace.finish(now_ns, execution.rows)
        for rows, phases in execution.runs:
            self._statistics.record_execution(rows, phases)
        for batch in self._answerable(execution):
            del self._unanswered[batch]
            _answer(batch)
        if not self._queue and not self._unanswered:
            self._pace.rest()
        self._ask()
        self._settle_drained()

    def _answerable(self, execution: Execution) -> list[Execution]:
        if self._policy.preserve_ordering:
            return list(takewhile(lambda batch: batch.outcomes, self._unanswered))
        return [execution]

    def _settle_drained(self) -> None:
        if self._drained and not self._drained.done() and not self._queue and not self._unanswered:
            self._drained.set_result(None)


def _answer(execution: Execution) -> None:
    for request, outcome in zip(execution.requests, execution.outcomes, strict=True):
        if isinstance(outcome, ServingError):
            _fail(request, outcome)
        elif not request.future.done():  # its caller may have gone away
            queue_ns = execution.began_ns - request.arrived_ns
            request.future.set_result(Answer(outcome.outputs, queue_ns, outcome.phases))


def _fail(request: Pending, error: ServingError) -> None:
    if not request.future.done():
        request.future.set_exception(error)
