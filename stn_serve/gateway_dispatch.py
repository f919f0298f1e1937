"""Which Triton gets a request, and whether another one does after it was lost.

Inference changes nothing, so a request whose answer is lost may be sent again. Three things bound that: the request's
deadline, its attempts, and a budget for all requests together, so that a Triton that fails again and again does not
double the load of the others. The budget holds what all of them may have in flight, for whatever happens to one at a
time, and is earned back by answers.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from stn_serve.errors import DeadlineExceeded, Unavailable
from stn_serve.gateway_replica import Headers, Lost, Replica

MAX_ATTEMPTS = 3
RETRIES_PER_ANSWER = 0.2

Message = Any
"""A message of tritonclient's, which has no types."""


class RetryBudget:
    """Retries that are allowed, earned by answers (Finagle's `RetryBudget`)."""

    def __init__(self, limit: float) -> None:
        self._limit = self._left = limit

    def earn(self) -> None:
        """There was an answer."""
        self._left = min(self._left + RETRIES_PER_ANSWER, self._limit)

    def spend(self) -> bool:
        """Whether there may be one more retry."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Dispatcher:
    """Of the requests for all models. Used on one event loop."""

    def __init__(self, max_in_flight: int, replicas: int) -> None:
        self.retries = 0
        """Requests that were sent again."""
        self._max_in_flight = max_in_flight
        self._budget = RetryBudget(max_in_flight * replicas)
        self._turn = 0

    def check_room(self, replicas: Sequence[Replica]) -> None:
        """Whether one of the replicas would take one more request.

        Raises:
            Unavailable: none answers, or all have as much as they may.
        """
        ready = [replica for replica in replicas if replica.ready]
        if not ready:
            raise Unavailable("no Triton that serves this model answers")
        if all(replica.in_flight >= self._max_in_flight for replica in ready):
            raise Unavailable(f"{self._max_in_flight} requests are with each Triton that serves this model")

    async def send(self, request: Message, replicas: Sequence[Replica], timeout_s: float, headers: Headers) -> Message:
        """The answer of one of the replicas to a `ModelInferRequest`.

        Raises:
            Unavailable: none can answer for now.
            DeadlineExceeded: the time is up.
            ServingError: the answer is an error.
        """
        self.check_room(replicas)
        deadline_s = time.monotonic() + timeout_s
        tried: list[Replica] = []
        while True:
            replica = self._choose(replicas, tried)
            tried.append(replica)
            try:
                response = await replica.infer(request, deadline_s - time.monotonic(), headers)
            except Lost as loss:
                if time.monotonic() >= deadline_s:
                    raise DeadlineExceeded(f"no answer from Triton within {timeout_s:.3g} s") from loss
                if len(tried) == MAX_ATTEMPTS or not self._budget.spend():
                    raise Unavailable(f"Triton has lost the request {len(tried)} times: {loss}") from loss
                self.retries += 1
            else:
                self._budget.earn()
                return response

    def _choose(self, replicas: Sequence[Replica], tried: Collection[Replica]) -> Replica:
        """The one with the least in flight, of equals each in its turn; rather one that has not lost anything.

        A request that is sent again is not counted against the limit: it has been accepted.
        """
        ready = [replica for replica in replicas if replica.ready]
        if not ready:
            raise Unavailable("no Triton that serves this model answers")
        self._turn += 1
        first = self._turn % len(ready)
        in_turn = ready[first:] + ready[:first]
        return min(in_turn, key=lambda replica: (replica in tried, replica.doubted, replica.in_flight))
