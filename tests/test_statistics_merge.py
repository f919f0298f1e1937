from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2

from stn_serve.statistics_merge import merge_statistics


def statistics(name: str, count: int, last: int, batches: dict[int, int]) -> Any:
    duration = service_pb2.StatisticDuration(count=count, ns=10 * count)
    return service_pb2.ModelStatistics(
        name=name,
        version="1",
        last_inference=last,
        inference_count=count,
        execution_count=count - 1,
        inference_stats=service_pb2.InferStatistics(success=duration, queue=duration),
        batch_stats=[
            service_pb2.InferBatchStatistics(
                batch_size=size, compute_infer=service_pb2.StatisticDuration(count=times, ns=times)
            )
            for size, times in batches.items()
        ],
    )


def test_two_processes_count_as_one() -> None:
    one = service_pb2.ModelStatisticsResponse(
        model_stats=[statistics("a", 3, 100, {1: 1, 4: 2}), statistics("b", 1, 5, {})]
    )
    two = service_pb2.ModelStatisticsResponse(model_stats=[statistics("a", 5, 70, {2: 1, 4: 3})])
    a, b = merge_statistics([one, two]).model_stats
    assert b == one.model_stats[1]
    assert (a.name, a.last_inference, a.inference_count, a.execution_count) == ("a", 100, 8, 6)
    assert (a.inference_stats.success.count, a.inference_stats.success.ns) == (8, 80)
    assert {batch.batch_size: batch.compute_infer.count for batch in a.batch_stats} == {1: 1, 2: 1, 4: 5}
    assert merge_statistics([one]) == one
