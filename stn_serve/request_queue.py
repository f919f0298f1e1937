"""The requests that wait for one model: which of them run next, and together."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

from numpy.typing import NDArray

from stn_serve.errors import Unavailable
from stn_serve.scheduling import BatchingPolicy
from stn_serve.statistics import Phases

Array = NDArray[Any]


class Answer(NamedTuple):
    """A request's rows of the outputs, and where its time went."""

    outputs: dict[str, Array]
    queue_ns: int
    phases: Phases


@dataclass(eq=False, slots=True)
class Pending:
    """A request and its caller, who awaits the future."""

    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    rows: int
    level: int
    arrived_ns: int
    future: asyncio.Future[Answer]
    expiry: asyncio.TimerHandle | None = None

    def fits(self, other: Pending) -> bool:
        """Whether both can be rows of one array."""
        return all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in self.inputs.items())


@dataclass(slots=True)
class _Level:
    waiting: OrderedDict[Pending, None] = field(default_factory=OrderedDict)
    postponed: OrderedDict[Pending, None] = field(default_factory=OrderedDict)
    """Those whose time is up, where the model's policy lets them run after the others."""
    rows: int = 0
    """Of all of them."""

    def __len__(self) -> int:
        return len(self.waiting) + len(self.postponed)


class Choice(NamedTuple):
    """What should run next."""

    requests: list[Pending]
    wait_s: float
    """How long it should still wait for company."""


class RequestQueue:
    """Requests by priority level, within a level in the order they came."""

    def __init__(self, name: str, policy: BatchingPolicy) -> None:
        self._name = name
        self._policy = policy
        self._preferred = policy.preferred_batch_sizes or {policy.max_batch_size}
        self._levels: dict[int, _Level] = {}
        """The highest first; a level comes into being with its first request."""

    def __len__(self) -> int:
        return sum(map(len, self._levels.values()))

    def __bool__(self) -> bool:
        return any(level.waiting or level.postponed for level in self._levels.values())

    def __iter__(self) -> Iterator[Pending]:
        """In the order they should run; without those whose callers have gone."""
        for level in self._levels.values():
            for requests in (level.waiting, level.postponed):
                for request in requests:
                    if not request.future.done():
                        yield request

    def check_room(self, level: int, arriving: int = 0) -> None:
        """Whether one more request may wait, with those that will.

        Raises:
            Unavailable: as many wait as are allowed to.
        """
        limit = self._policy.queue_of(level).max_queue_size
        waiting = len(self._levels[level]) if level in self._levels else 0
        if waiting + arriving >= limit:
            raise Unavailable(f"Exceeds maximum queue size of {limit} for model '{self._name}'")

    def before(self, level: int, arriving: int = 0) -> tuple[int, int]:
        """How many batches the requests make that run before one more of this level, and their rows.

        Those that are still to come have one row each, at least.
        """
        ahead = [waiting for number, waiting in self._levels.items() if number <= level]
        rows = sum(waiting.rows for waiting in ahead) + arriving
        if not self._policy.max_batch_size:
            return sum(map(len, ahead)) + arriving, rows
        return ceil(rows / self._policy.max_batch_size), rows

    def add(self, request: Pending) -> None:
        """The last of its level, where there must be room."""
        if request.level not in self._levels:
            self._levels = dict(sorted({**self._levels, request.level: _Level()}.items()))
        level = self._levels[request.level]
        level.waiting[request] = None
        level.rows += request.rows

    def discard(self, request: Pending) -> None:
        """Forget a request; nothing happens if it does not wait."""
        level = self._levels[request.level]
        for requests in (level.waiting, level.postponed):
            if request in requests:
                del requests[request]
                level.rows -= request.rows

    def postpone(self, request: Pending) -> None:
        """Run a request after all others of its level whose time is not up."""
        level = self._levels[request.level]
        del level.waiting[request]
        level.postponed[request] = None

    def choose(self) -> Choice:
        """The requests of the next batch, and whether they should still wait for company.

        A batch ends where the next request does not fit into it. It runs at once if it has a preferred size, or if the
        next request would make it larger than all of those: then it is the largest preferred one. If it has none, it
        waits until its oldest request has waited for `max_queue_delay_us`, and then runs as it is.
        """
        largest = max(self._preferred)
        batch: list[Pending] = []
        rows = preferred = 0
        complete = False
        for request in self:
            if batch:
                if not preferred and rows + request.rows > largest:
                    preferred = len(batch)
                if rows + request.rows > self._policy.max_batch_size or not request.fits(batch[0]):
                    complete = True
                    break
            batch.append(request)
            rows += request.rows
            if rows in self._preferred:
                preferred = len(batch)
        wait_s = self._remaining_delay_s(batch)
        if preferred and wait_s >= 0:
            return Choice(batch[:preferred], 0)
        return Choice(batch, 0 if complete or rows >= largest else max(wait_s, 0))

    def _remaining_delay_s(self, batch: list[Pending]) -> float:
        """How long a batch may still wait; below 0 where it has waited for too long."""
        delay_us = self._policy.max_queue_delay_us
        if not delay_us or not batch:
            return 0
        oldest_ns = min(request.arrived_ns for request in batch)
        return delay_us / 1e6 - (time.perf_counter_ns() - oldest_ns) / 1e9
