"""One batch, from the rows of its requests to the outputs of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import onnxruntime as ort
from numpy.typing import NDArray

from stn_serve.errors import ModelFailure
from stn_serve.input_buffers import InputBuffers
from stn_serve.request_queue import Pending
from stn_serve.scheduling import BatchingPolicy
from stn_serve.statistics import Phases

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array], Sequence[str], ort.RunOptions], dict[str, Array]]
"""Computes the named outputs; what it returns must not be memory of its inputs."""


class Computed(NamedTuple):
    """A request's outputs, and how long the run that made them took."""

    outputs: dict[str, Array]
    phases: Phases


class Execution:
    """A batch, to be run in a thread."""

    def __init__(
        self,
        name: str,
        run: Run,
        policy: BatchingPolicy,
        requests: list[Pending],
        buffers: InputBuffers,
        finished: Callable[[Execution], None],
    ) -> None:
        self.requests = requests
        self.buffers = buffers
        self.began_ns = 0
        self.outcomes: list[Computed | ModelFailure] = []
        """One for each request, once it has run."""
        self.runs: list[tuple[int, Phases]] = []
        """The rows of each run, and how long it took: one, unless a request made it fail."""
        self._options = ort.RunOptions()
        self._name = name
        self._run = run
        self._policy = policy
        self._finished = finished

    @property
    def rows(self) -> int:
        """Of all its requests."""
        return sum(request.rows for request in self.requests)

    def run(self) -> None:
        """Compute the outcomes."""
        self.began_ns = time.perf_counter_ns()
        self.outcomes = self._compute(self.requests)

    def finish(self) -> None:
        """Hand the outcomes over, on the event loop."""
        self._finished(self)

    def abandon(self) -> None:
        """Stop at the next node of the graph: nobody waits for the outcomes."""
        self._options.terminate = True

    @property
    def is_abandoned(self) -> bool:
        """Whether it was stopped."""
        return bool(self._options.terminate)

    def _compute(self, requests: list[Pending]) -> list[Computed | ModelFailure]:
        """Of requests that make a batch fail, each half is run again: in the end they fail alone."""
        try:
            return self._compute_together(requests)
        except BaseException as error:  # whatever it is, the callers wait
            if len(requests) == 1:
                return [_failure(error)]
        half = len(requests) // 2
        return self._compute(requests[:half]) + self._compute(requests[half:])

    def _compute_together(self, requests: list[Pending]) -> list[Computed | ModelFailure]:
        began = time.perf_counter_ns()
        rows = sum(request.rows for request in requests)
        padded_rows = self._policy.padded(rows)
        inputs = self.buffers.assemble([request.inputs for request in requests], rows, padded_rows)
        assembled = time.perf_counter_ns()
        names = list(dict.fromkeys(name for request in requests for name in request.outputs))
        outputs = self._run(inputs, names, self._options)
        computed = time.perf_counter_ns()
        shares = self._split(requests, outputs, padded_rows)
        ended = time.perf_counter_ns()
        phases = Phases(assembled - began, computed - assembled, ended - computed)
        self.runs.append((rows, phases))
        return [Computed(share, phases) for share in shares]

    def _split(self, requests: list[Pending], outputs: Mapping[str, Array], rows: int) -> list[dict[str, Array]]:
        """The outputs that each request asked for, of its rows."""
        if not self._policy.has_batch_axis:
            return [{name: outputs[name] for name in requests[0].outputs}]
        for name, array in outputs.items():
            if array.shape[:1] != (rows,):
                shape = list(array.shape)
                raise ModelFailure(f"model '{self._name}': output '{name}' has shape {shape}, expected {rows} rows")
        shares, start = [], 0
        for request in requests:
            end = start + request.rows
            shares.append({name: outputs[name][start:end] for name in request.outputs})
            start = end
        return shares


def _failure(error: BaseException) -> ModelFailure:
    # Not with the error as its cause: its traceback would hold the batch and the model, and the batch the failure.
    return ModelFailure(str(error) or type(error).__name__)
