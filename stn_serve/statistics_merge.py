"""The statistics of several processes as those of one server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2


def merge_statistics(
    responses: Iterable[service_pb2.ModelStatisticsResponse],
) -> service_pb2.ModelStatisticsResponse:
    """Counts and times are added up, and the last inference is the latest."""
    merged: dict[tuple[str, str], service_pb2.ModelStatistics] = {}
    for statistics in (entry for response in responses for entry in response.model_stats):
        known = merged.setdefault(
            (statistics.name, statistics.version),
            service_pb2.ModelStatistics(name=statistics.name, version=statistics.version),
        )
        _add(known, statistics)
    return service_pb2.ModelStatisticsResponse(model_stats=merged.values())


def _add(known: Any, more: Any) -> None:  # noqa: ANN401 - messages without types
    last = max(known.last_inference, more.last_inference)
    _add_up(known.inference_stats, more.inference_stats)
    known.inference_count += more.inference_count
    known.execution_count += more.execution_count
    known.last_inference = last
    batches = {batch.batch_size: batch for batch in known.batch_stats}
    for batch in more.batch_stats:
        _add_up(batches.get(batch.batch_size) or known.batch_stats.add(batch_size=batch.batch_size), batch)
    known.batch_stats.sort(key=lambda batch: batch.batch_size)


def _add_up(known: Message, more: Message) -> None:
    """Every duration of a message."""
    for field, duration in more.ListFields():
        if isinstance(duration, service_pb2.StatisticDuration):
            total = getattr(known, field.name)
            total.count += duration.count
            total.ns += duration.ns
