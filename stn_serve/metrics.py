"""What a process has counted, under Triton's names, labels and types, so that its dashboards and alerts work unchanged.

The names are written out: prometheus_client would make `nv_inference_count_total` of a counter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.process_collector import ProcessCollector

from stn_serve import logs
from stn_serve.exposition import Family, Kind, Labels, Merge, Value, labels
from stn_serve.registry import ModelRegistry
from stn_serve.served_model import ServedModel


class ModelMetric(NamedTuple):
    """A metric with one series for each version of a model."""

    name: str
    kind: Kind
    help: str
    value: Callable[[ServedModel], Value]
    merge: Merge = "sum"


SUCCESS = ModelMetric(
    "nv_inference_request_success",
    "counter",
    "Number of successful inference requests, all batch sizes",
    lambda served: served.statistics.success.count,
)

MODEL_METRICS = (
    ModelMetric(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        lambda served: served.statistics.inference_count,
    ),
    ModelMetric(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda served: served.statistics.execution_count,
    ),
    ModelMetric(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda served: served.statistics.success.ns // 1000,
    ),
    ModelMetric(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda served: served.statistics.queue.ns // 1000,
    ),
    ModelMetric(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_input.ns // 1000,
    ),
    ModelMetric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_infer.ns // 1000,
    ),
    ModelMetric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_output.ns // 1000,
    ),
    ModelMetric(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda served: served.batcher.pending_count,
    ),
    ModelMetric(
        "nv_model_load_duration_secs",
        "gauge",
        "Model load time in seconds",
        lambda served: served.load_s,
        merge="max",
    ),
)

PROCESS_MERGES: dict[str, Merge] = {
    "process_start_time_seconds": "max",  # the youngest process: it shows that one was restarted
    "process_max_fds": "max",
}


class Metrics:
    """Takes the snapshots of one process."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._process = ProcessCollector(registry=None)

    async def snapshot(self) -> list[Family]:
        """Everything that is counted in this process, now."""
        models = list(self._registry)
        return [
            _family(SUCCESS, models),
            _failures(models),
            *(_family(metric, models) for metric in MODEL_METRICS),
            Family(
                "stn_log_lines_lost_total",
                "counter",
                "Lines of the log that could not be written",
                {(): logs.lost_lines()},
            ),
            *self._process_families(),
        ]

    def _process_families(self) -> Iterator[Family]:
        for metric in self._process.collect():
            for sample in metric.samples:
                kind: Kind = "counter" if metric.type == "counter" else "gauge"
                merge = PROCESS_MERGES.get(sample.name, "sum")
                yield Family(sample.name, kind, metric.documentation, {(): sample.value}, merge)


def _family(metric: ModelMetric, models: Sequence[ServedModel]) -> Family:
    samples = {model_labels(served): metric.value(served) for served in models}
    return Family(metric.name, metric.kind, metric.help, samples, metric.merge)


def _failures(models: Iterable[ServedModel]) -> Family:
    samples = {
        model_labels(served, reason=reason): count
        for served in models
        for reason, count in served.statistics.failures.items()
    }
    return Family(
        "nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes", samples
    )


def model_labels(served: ServedModel, **more: str) -> Labels:
    """The labels of a version's series."""
    return labels(model=served.model.name, version=str(served.model.version), **more)
