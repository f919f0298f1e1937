"""What one version of a model has done, counted as Triton counts it.

Each successful request adds its own time in the queue and the whole time of the batch that held it. Each execution adds
the batch's time under its number of rows. Times are nanoseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from stn_serve.errors import FailureReason
from stn_serve.histograms import Histogram

Phase = Literal["request", "queue", "compute_input", "compute_infer", "compute_output"]
"""In the order in which a request is recorded."""


class Phases(NamedTuple):
    """Nanoseconds that one execution took to assemble its batch, to compute, and to take the result apart."""

    compute_input_ns: int
    compute_infer_ns: int
    compute_output_ns: int


@dataclass(slots=True)
class Duration:
    """How often, and how long altogether."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class ComputeDurations:
    """The three phases of an execution."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)

    def add(self, phases: Phases) -> None:
        """Count one more in each phase."""
        self.compute_input.add(phases.compute_input_ns)
        self.compute_infer.add(phases.compute_infer_ns)
        self.compute_output.add(phases.compute_output_ns)


DURATION_US = (100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000)
"""Bounds of the buckets: those that core#474 proposes to Triton for any of the phases, and some between them."""

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def _phase_histograms() -> dict[Phase, Histogram]:
    return {phase: Histogram(DURATION_US) for phase in get_args(Phase)}


@dataclass(slots=True)
class Statistics:
    """Counted on the event loop only, so without locks."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: ComputeDurations = field(default_factory=ComputeDurations)
    inference_count: int = 0
    """Rows, where a request of three images counts three."""
    execution_count: int = 0
    last_inference_ms: int = 0
    """Milliseconds since 1970."""
    batches: dict[int, ComputeDurations] = field(default_factory=dict)
    """By rows."""
    histograms: dict[Phase, Histogram] = field(default_factory=_phase_histograms)
    """Microseconds of each successful request."""
    batch_sizes: Histogram = field(default_factory=lambda: Histogram(BATCH_SIZES))
    """Rows of each execution."""
    failures: dict[FailureReason, int] = field(default_factory=lambda: dict.fromkeys(get_args(FailureReason), 0))

    def record_execution(self, rows: int, phases: Phases) -> None:
        """One batch has run."""
        self.execution_count += 1
        self.batch_sizes.add(rows)
        self.batches.setdefault(rows, ComputeDurations()).add(phases)

    def record_success(self, rows: int, request_ns: int, queue_ns: int, phases: Phases) -> None:
        """One request is answered."""
        self.inference_count += rows
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.add(request_ns)
        self.queue.add(queue_ns)
        self.compute.add(phases)
        for histogram, ns in zip(self.histograms.values(), (request_ns, queue_ns, *phases), strict=True):
            histogram.add(ns / 1000)

    def record_failure(self, request_ns: int, reason: FailureReason) -> None:
        """One request has failed."""
        self.fail.add(request_ns)
        self.failures[reason] += 1
