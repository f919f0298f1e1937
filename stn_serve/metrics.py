"""Prometheus metrics with Triton's names, labels and types, so that its dashboards and alerts work unchanged.

Written by hand: prometheus_client would name a counter `nv_inference_count_total`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.process_collector import ProcessCollector

from stn_serve.errors import MethodNotAllowed, NotFound, ServingError
from stn_serve.http_messages import Receive, Response, Scope, Send, error_response, send_response
from stn_serve.registry import ModelRegistry, ServedModel

CONTENT_TYPE = "text/plain; charset=utf-8"


class Family(NamedTuple):
    """One metric, read from each model when it is scraped."""

    name: str
    type: str
    help: str
    value: Callable[[ServedModel], float]


FAMILIES = (
    Family(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests, all batch sizes",
        lambda served: served.statistics.success.count,
    ),
    Family(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        lambda served: served.statistics.inference_count,
    ),
    Family(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda served: served.statistics.execution_count,
    ),
    Family(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda served: served.statistics.success.ns // 1000,
    ),
    Family(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda served: served.statistics.queue.ns // 1000,
    ),
    Family(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_input.ns // 1000,
    ),
    Family(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_infer.ns // 1000,
    ),
    Family(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda served: served.statistics.compute.compute_output.ns // 1000,
    ),
    Family(
        "nv_inference_pending_request_count",
        "gauge",
        "Instantaneous number of pending requests awaiting execution per-model.",
        lambda served: served.batcher.pending_count,
    ),
    Family(
        "nv_model_load_duration_secs",
        "gauge",
        "Model load time in seconds",
        lambda served: served.load_s,
    ),
)

FAILURES = ("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes")


class MetricsApi:
    """The ASGI application of the metrics port."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._models = registry
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer `GET /metrics`."""
        try:
            response = self._respond(scope["method"], scope["path"])
        except ServingError as error:
            response = error_response(error)
        await send_response(send, response)

    def render(self) -> str:
        """The exposition text: every model's counters, then the process's."""
        return "\n".join(_lines(list(self._models))) + "\n" + generate_latest(self._process).decode()

    def _respond(self, method: str, path: str) -> Response:
        if path != "/metrics":
            raise NotFound("Not Found")
        if method != "GET":
            raise MethodNotAllowed("GET")
        return Response(self.render().encode(), content_type=CONTENT_TYPE)


def _lines(models: list[ServedModel]) -> Iterator[str]:
    for family in FAMILIES:
        yield from _head(family.name, family.type, family.help)
        for served in models:
            yield f"{family.name}{{{_model_label(served)},{_version_label(served)}}} {family.value(served)}"
        if family.name == "nv_inference_request_success":
            yield from _failures(models)


def _failures(models: list[ServedModel]) -> Iterator[str]:
    name, _, _ = FAILURES
    yield from _head(*FAILURES)
    for served in models:
        for reason, count in served.statistics.failures.items():
            yield f'{name}{{{_model_label(served)},reason="{reason}",{_version_label(served)}}} {count}'


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _model_label(served: ServedModel) -> str:
    escaped = served.model.name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'model="{escaped}"'


def _version_label(served: ServedModel) -> str:
    return f'version="{served.model.version}"'
