"""What stands behind a model in the gateway: Triton queues and batches, so each request goes on to it at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from numpy.typing import NDArray

from stn_serve import calls
from stn_serve.arrivals import Arrival, Arrivals
from stn_serve.errors import ModelFailure, Unavailable
from stn_serve.gateway_dispatch import Dispatcher
from stn_serve.gateway_replica import Headers, Replica
from stn_serve.request_queue import Answer
from stn_serve.scheduling import AS_CONFIGURED, Urgency
from stn_serve.signature import ModelSignature
from stn_serve.statistics import Phases, Statistics
from stn_serve.tensor_messages import arrays, infer_request

Array = NDArray[Any]
Message = Any
"""A message of tritonclient's, which has no types."""

TRACE_HEADER = "traceparent"
"""Of W3C Trace Context: what Triton records belongs to the caller's trace."""


class GatewayScheduler:
    """Stands where a `Batcher` does for models that are computed here. Used on one event loop."""

    def __init__(self, model: ModelSignature, dispatcher: Dispatcher, statistics: Statistics, timeout_s: float) -> None:
        self.replicas: Sequence[Replica] = ()
        """Those that serve this version, whether or not they answer."""
        self._model = model
        self._dispatcher = dispatcher
        self._statistics = statistics
        self._timeout_s = timeout_s
        self._in_flight = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def ready_count(self) -> int:
        """How many Tritons could answer now."""
        return sum(replica.ready for replica in self.replicas)

    @property
    def pending_count(self) -> int:
        """Requests that are with Triton: which of them wait there is not known here."""
        return self._in_flight

    def check_room(self, urgency: Urgency = AS_CONFIGURED, remaining_s: float | None = None) -> None:
        """Whether a request would be sent on now, to be asked before work is spent on it.

        Raises:
            Unavailable: no Triton takes it, or the gateway is closing.
        """
        del urgency, remaining_s  # it is Triton that knows its queue
        if self._closed:
            raise Unavailable(f"Server is stopping, model '{self._model.name}' has stopped accepting requests")
        self._dispatcher.check_room(self.replicas)

    def expect(self, remaining_s: float | None) -> Arrival:
        """Let in a request that is still to be read; it counts for nobody.

        Raises:
            Unavailable: as `check_room`.
        """
        self.check_room(remaining_s=remaining_s)
        return Arrivals().expect()

    async def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int, urgency: Urgency = AS_CONFIGURED
    ) -> Answer:
        """Have Triton compute one request.

        Raises:
            Unavailable: no Triton can answer for now.
            DeadlineExceeded: the caller's time is up, or the gateway's.
            ModelFailure: the model failed, or answered what it does not promise.
        """
        self.check_room()
        began = time.perf_counter_ns()
        request = self._request(inputs, outputs, urgency)
        sent = time.perf_counter_ns()
        with self._counted():
            response = await self._dispatcher.send(request, self.replicas, self._remaining_s(), _headers())
        received = time.perf_counter_ns()
        answer = self._outputs(response, outputs, rows)
        phases = Phases(sent - began, received - sent, time.perf_counter_ns() - received)
        self._statistics.record_execution(rows, phases)
        return Answer(answer, 0, phases)

    async def close(self, grace_s: float | None = None) -> None:
        """Refuse what comes and wait for what is with Triton, at most for `grace_s`; None waits for ever."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._empty.wait()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._empty.set()

    def _request(self, inputs: Mapping[str, Array], outputs: Sequence[str], urgency: Urgency) -> Message:
        request = infer_request(self._model.name, str(self._model.version), inputs, outputs)
        if urgency.priority:
            request.parameters["priority"].uint64_param = urgency.priority
        if urgency.timeout_us:
            request.parameters["timeout"].int64_param = urgency.timeout_us
        if call := calls.current():
            request.id = call.request_id
        return request

    def _remaining_s(self) -> float:
        remaining_s = calls.remaining_s()
        return self._timeout_s if remaining_s is None else min(remaining_s, self._timeout_s)

    def _outputs(self, response: Message, wanted: Sequence[str], rows: int) -> dict[str, Array]:
        found = arrays(response)
        signatures = {spec.name: spec for spec in self._model.outputs}
        for name in wanted:
            if name not in found:
                raise ModelFailure(f"model '{self._model.name}': Triton's answer lacks output '{name}'")
            spec, shape = signatures[name], found[name].shape
            if not spec.fits(shape) or (spec.batched and shape[0] != rows):
                raise ModelFailure(
                    f"model '{self._model.name}': output '{name}' of Triton's answer has shape {list(shape)} "
                    f"for {rows} rows, expected {list(spec.shape)}"
                )
        return {name: found[name] for name in wanted}


def _headers() -> Headers:
    """What goes on from the caller to Triton."""
    call = calls.current()
    parent = call.header(TRACE_HEADER) if call else ""
    return ((TRACE_HEADER, parent),) if parent else ()
