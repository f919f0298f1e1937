"""OpenTelemetry traces of the calls that ask for a model: `pip install 'stn-serve[tracing]'`, `stn serve --tracing`.

Each call is a span, the child of its caller's where W3C Trace Context came along (`traceparent` in the HTTP headers or
gRPC metadata), and has children for its phases: decode, queue and compute, of every image where it has several. Spans
are made when a call has ended, so that nothing waits for them. Where they go, and which are sampled, is up to the
variables of OpenTelemetry: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and the others.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from stn_serve.calls import Call
from stn_serve.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

W3C = ("traceparent", "tracestate")
LAST_SPANS_S = 2.0
"""How long an ending process waits for its last spans to be sent."""


class Tracing:
    """Makes spans of calls."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("stn_serve")
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def start(cls) -> Self:
        """Send spans by OTLP over gRPC.

        Raises:
            ConfigurationError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigurationError(
                "tracing needs OpenTelemetry, which is not installed: pip install 'stn-serve[tracing]'"
            ) from error
        named = Resource.create().merge(Resource({SERVICE_NAME: "stn-serve"})).merge(OTELResourceDetector().detect())
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def record(self, call: Call) -> str:
        """Make the spans of a call that has ended; returns the id of its trace, or nothing for one without a model."""
        if not call.model:
            return ""
        since_1970_ns = time.time_ns() - time.perf_counter_ns()
        parent = self._propagator.extract({name: call.header(name) for name in W3C if call.header(name)})
        span = self._tracer.start_span(
            call.operation,
            parent,
            self._api.SpanKind.SERVER,
            attributes=_attributes(call),
            start_time=since_1970_ns + call.began_ns,
        )
        if call.error and call.error.http_status >= 500:
            span.set_status(self._api.StatusCode.ERROR, call.message)
        if span.is_recording():
            context = self._api.set_span_in_context(span)
            for phase, began_ns, ended_ns in call.phases:
                child = self._tracer.start_span(phase, context, start_time=since_1970_ns + began_ns)
                child.end(since_1970_ns + ended_ns)
        span.end(since_1970_ns + call.ended_ns)
        return self._api.format_trace_id(span.get_span_context().trace_id)

    def stop(self) -> None:
        """Send what is left, but do not wait for a collector that does not answer."""
        # A daemon, as the exporter may try for longer than anybody wants to wait.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        last.join(LAST_SPANS_S)


def _attributes(call: Call) -> dict[str, str | int]:
    return {
        "network.protocol.name": call.protocol,
        "stn.model": call.model,
        "stn.version": call.version,
        "stn.request_id": call.id,
        "stn.status": call.status,
        "stn.rows": call.rows,
    }
