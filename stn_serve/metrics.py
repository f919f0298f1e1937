"""What a process has counted, under Triton's names, labels and types, so that its dashboards and alerts work unchanged.

The names are written out: prometheus_client would make `nv_inference_count_total` of a counter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from prometheus_client.process_collector import ProcessCollector

from stn_serve import logs, machine
from stn_serve.catalogue import Catalogue
from stn_serve.exposition import Buckets, Family, Kind, Labels, Merge, Value, labels
from stn_serve.machine import CpuUtilization
from stn_serve.prediction_metrics import prediction_families
from stn_serve.served_model import ServedModel
from stn_serve.statistics import Phase


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

PHASES: dict[Phase, str] = {
    "request": "Inference request duration in microseconds, of successful requests",
    "queue": "Time that successful requests waited in the queue, in microseconds",
    "compute_input": "Time to put together the batch of a successful request, in microseconds",
    "compute_infer": "Time to compute the batch of a successful request, in microseconds",
    "compute_output": "Time to take apart the outputs of the batch of a successful request, in microseconds",
}


def _duration_buckets(phase: Phase, served: ServedModel) -> Buckets:
    return served.statistics.histograms[phase].buckets()


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
    *(
        ModelMetric(
            f"nv_inference_{phase}_duration_histogram_us",
            "histogram",
            text,
            partial(_duration_buckets, phase),
        )
        for phase, text in PHASES.items()
    ),
    ModelMetric(
        "stn_batch_size",
        "histogram",
        "Rows of each model execution",
        lambda served: served.statistics.batch_sizes.buckets(),
    ),
)

PROCESS_MERGES: dict[str, Merge] = {
    "process_start_time_seconds": "max",  # the youngest process: it shows that one was restarted
    "process_max_fds": "max",
}


class Metrics:
    """Takes the snapshots of one process."""

    def __init__(self, registry: Catalogue) -> None:
        self._registry = registry
        self._process = ProcessCollector(registry=None)
        self._cpu_utilization = CpuUtilization()

    async def snapshot(self) -> list[Family]:
        """Everything that is counted in this process, now."""
        models = list(self._registry)
        counted = [(_names(served), served.predictions) for served in models if served.predictions]
        for _, predictions in counted:
            await asyncio.to_thread(predictions.count)
        return [
            _family(SUCCESS, models),
            _failures(models),
            *(_family(metric, models) for metric in MODEL_METRICS),
            self._load_failures(),
            *prediction_families(counted),
            *self._registry.families(),
            *self._machine_families(),
            *self._process_families(),
            Family("stn_log_lines_lost_total", "counter", "Lines of the log not written", {(): logs.lost_lines()}),
        ]

    def _load_failures(self) -> Family:
        samples: dict[Labels, Value] = {
            labels(model=entry.name, version=str(entry.version or "")): int(entry.failed)
            for entry in self._registry.index
        }
        text = "1 where a version could not be loaded as the repository has it now"
        return Family("stn_model_load_failed", "gauge", text, samples, merge="max")

    def _machine_families(self) -> Iterator[Family]:
        """The same from every process of a machine, so the largest is the one."""
        utilization, memory = self._cpu_utilization.read(), machine.memory()
        if utilization is None or memory is None:
            return
        for name, text, value in (
            ("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", utilization),
            ("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", memory.total),
            ("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", memory.used),
        ):
            yield Family(name, "gauge", text, {(): value}, merge="max")

    def _process_families(self) -> Iterator[Family]:
        for metric in self._process.collect():
            for sample in metric.samples:
                kind: Kind = "counter" if metric.type == "counter" else "gauge"
                merge = PROCESS_MERGES.get(sample.name, "sum")
                yield Family(sample.name, kind, metric.documentation, {(): sample.value}, merge)


def _family(metric: ModelMetric, models: Sequence[ServedModel]) -> Family:
    samples = {labels(**_names(served)): metric.value(served) for served in models}
    return Family(metric.name, metric.kind, metric.help, samples, metric.merge)


def _failures(models: Iterable[ServedModel]) -> Family:
    samples: dict[Labels, Value] = {
        labels(**_names(served), reason=reason): count
        for served in models
        for reason, count in served.statistics.failures.items()
    }
    return Family(
        "nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes", samples
    )


def _names(served: ServedModel) -> dict[str, str]:
    return {"model": served.model.name, "version": str(served.model.version)}
