"""Requests queue here and run together.

A request runs as soon as one of the model's instances is free, with whatever else waits, up to `max_batch_size` rows;
only `max_queue_delay_us` makes a batch wait for company, counted from its first request. Each caller awaits its own
future: one that is cancelled or expires leaves the queue, and no neighbour notices.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ModelFailure, ServingError, Unavailable
from stn_serve.statistics import Phases, Statistics

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array], Sequence[str]], dict[str, Array]]

DEFAULT_MAX_QUEUE_SIZE = 1024
"""Requests that may wait where `config.pbtxt` sets no bound: without one, overload would end in the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingPolicy:
    """The scheduling part of a model's configuration."""

    max_batch_size: int
    """Rows of the largest batch; 0 runs each request alone."""
    max_queue_delay_us: int = 0
    max_queue_size: int = DEFAULT_MAX_QUEUE_SIZE
    """Requests that may wait."""
    timeout_us: int = 0
    """How long a request may wait; 0 is for ever."""
    allow_timeout_override: bool = False
    """Whether a request may shorten its own timeout."""

    @classmethod
    def from_config(cls, config: ModelConfig) -> Self:
        """Without `dynamic_batching` each request runs alone, as with Triton."""
        batching = config.dynamic_batching
        queue = batching.default_queue_policy
        return cls(
            max_batch_size=config.max_batch_size if config.HasField("dynamic_batching") else 0,
            max_queue_delay_us=batching.max_queue_delay_microseconds,
            max_queue_size=queue.max_queue_size or DEFAULT_MAX_QUEUE_SIZE,
            timeout_us=queue.default_timeout_microseconds,
            allow_timeout_override=queue.allow_timeout_override,
        )

    def timeout_s(self, requested_us: int) -> float | None:
        """Seconds that a request with its own `timeout` parameter (0: none) may wait."""
        allowed = [us for us in (self.timeout_us, requested_us if self.allow_timeout_override else 0) if us]
        return min(allowed) / 1e6 if allowed else None


class Answer(NamedTuple):
    """A request's rows of the outputs, and where its time went."""

    outputs: dict[str, Array]
    queue_ns: int
    phases: Phases


class _Execution(NamedTuple):
    results: list[dict[str, Array]]
    began_ns: int
    phases: Phases


@dataclass(eq=False, slots=True)
class _Pending:
    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    rows: int
    arrived_ns: int
    future: asyncio.Future[Answer]

    def fits(self, other: _Pending) -> bool:
        """Whether both can be rows of one array."""
        return all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items())


class Batcher:
    """The queue of one version of a model, and the threads that run it. Used on one event loop."""

    def __init__(self, name: str, run: Run, policy: BatchingPolicy, statistics: Statistics, instances: int = 1) -> None:
        self._name = name
        self._run = run
        self._policy = policy
        self._statistics = statistics
        self._queue: OrderedDict[_Pending, None] = OrderedDict()
        self._idle = self._instances = instances
        self._executor = ThreadPoolExecutor(instances, thread_name_prefix=name)
        self._dispatching = False
        self._timer: asyncio.TimerHandle | None = None
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending_count(self) -> int:
        """Requests that wait to run."""
        return len(self._queue)

    async def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int, timeout_us: int = 0
    ) -> Answer:
        """Run one request of `rows` rows among others; `outputs` are the names to compute.

        Raises:
            Unavailable: the queue is full, the request waited too long, or the batcher is closing.
            ModelFailure: the batch that held it failed.
        """
        if self._drained is not None:
            raise Unavailable(f"Server is stopping, model '{self._name}' has stopped accepting new inference requests")
        if len(self._queue) >= self._policy.max_queue_size:
            raise Unavailable(f"Exceeds maximum queue size of {self._policy.max_queue_size} for model '{self._name}'")
        loop = asyncio.get_running_loop()
        pending = _Pending(inputs, outputs, rows, time.perf_counter_ns(), loop.create_future())
        self._queue[pending] = None
        if self._idle and not self._dispatching:
            # Not at once: what else has arrived in this turn of the loop joins the batch for free.
            self._dispatching = True
            loop.call_soon(self._dispatch)
        timeout_s = self._policy.timeout_s(timeout_us)
        expiry = None if timeout_s is None else loop.call_later(timeout_s, self._expire, pending)
        try:
            return await pending.future
        finally:
            self._queue.pop(pending, None)
            self._settle_drained()
            if expiry:
                expiry.cancel()

    async def close(self) -> None:
        """Refuse what comes, finish what waits and runs, end the threads."""
        self._drained = asyncio.get_running_loop().create_future()
        self._settle_drained()
        await self._drained
        self._executor.shutdown()

    def _expire(self, pending: _Pending) -> None:
        if pending in self._queue:
            del self._queue[pending]
            _fail(pending, Unavailable(f"Request timeout expired in the queue of model '{self._name}'"))

    def _dispatch(self) -> None:
        """Start batches while there are requests that need not wait longer and instances to run them."""
        self._dispatching = False
        if self._timer:
            self._timer.cancel()
        while self._idle and self._queue:
            delay_s = self._delay_s()
            if delay_s > 0:
                self._timer = asyncio.get_running_loop().call_later(delay_s, self._dispatch)
                return
            self._start(self._take())

    def _delay_s(self) -> float:
        """How long the batch that stands first may still wait for company."""
        delay_us = self._policy.max_queue_delay_us
        if not delay_us or sum(pending.rows for pending in self._queue) >= self._policy.max_batch_size:
            return 0
        waited_ns = time.perf_counter_ns() - next(iter(self._queue)).arrived_ns
        return delay_us / 1e6 - waited_ns / 1e9

    def _take(self) -> list[_Pending]:
        """The requests of the next batch, in order of arrival; always at least one."""
        first, _ = self._queue.popitem(last=False)
        batch, rows = [first], first.rows
        while self._queue:
            following = next(iter(self._queue))
            rows += following.rows
            if rows > self._policy.max_batch_size or not following.fits(first):
                break
            del self._queue[following]
            batch.append(following)
        return batch

    def _start(self, batch: list[_Pending]) -> None:
        self._idle -= 1
        work = asyncio.get_running_loop().run_in_executor(self._executor, self._execute, batch)
        work.add_done_callback(partial(self._finish, batch))

    def _execute(self, batch: list[_Pending]) -> _Execution:
        """In a worker thread: one run for the whole batch."""
        began = time.perf_counter_ns()
        inputs = _concatenate(batch)
        assembled = time.perf_counter_ns()
        outputs = self._run(inputs, list(dict.fromkeys(name for pending in batch for name in pending.outputs)))
        computed = time.perf_counter_ns()
        results = self._split(batch, outputs)
        ended = time.perf_counter_ns()
        return _Execution(results, began, Phases(assembled - began, computed - assembled, ended - computed))

    def _split(self, batch: list[_Pending], outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        if len(batch) == 1:
            return [{name: outputs[name] for name in batch[0].outputs}]
        rows = sum(pending.rows for pending in batch)
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                raise ModelFailure(
                    f"model '{self._name}': output '{name}' has shape {list(array.shape)} for a batch of {rows} rows"
                )
        results, start = [], 0
        for pending in batch:
            end = start + pending.rows
            results.append({name: outputs[name][start:end] for name in pending.outputs})
            start = end
        return results

    def _finish(self, batch: list[_Pending], work: asyncio.Future[_Execution]) -> None:
        self._idle += 1
        error = work.exception()
        if error:
            for pending in batch:
                _fail(pending, ModelFailure(str(error)), cause=error)
        else:
            self._answer(batch, work.result())
        self._dispatch()
        self._settle_drained()

    def _answer(self, batch: list[_Pending], execution: _Execution) -> None:
        self._statistics.record_execution(sum(pending.rows for pending in batch), execution.phases)
        for pending, outputs in zip(batch, execution.results, strict=True):
            if not pending.future.done():  # its caller may have gone away
                queue_ns = execution.began_ns - pending.arrived_ns
                pending.future.set_result(Answer(outputs, queue_ns, execution.phases))

    def _settle_drained(self) -> None:
        if self._drained and not self._drained.done() and not self._queue and self._idle == self._instances:
            self._drained.set_result(None)


def _fail(pending: _Pending, error: ServingError, cause: BaseException | None = None) -> None:
    if not pending.future.done():
        error.__cause__ = cause
        pending.future.set_exception(error)


def _concatenate(batch: list[_Pending]) -> Mapping[str, Array]:
    """One copy into the batch; none for a request that is alone."""
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([pending.inputs[name] for pending in batch]) for name in batch[0].inputs}
