"""What a gateway counts of the Tritons behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stn_serve.exposition import Family, Kind, Merge, labels
from stn_serve.gateway_dispatch import Dispatcher
from stn_serve.gateway_replica import Replica


class ReplicaMetric(NamedTuple):
    """A metric with one series for each Triton."""

    name: str
    kind: Kind
    help: str
    value: Callable[[Replica], int]
    merge: Merge = "sum"


REPLICA_METRICS = (
    ReplicaMetric("stn_triton_up", "gauge", "Whether a Triton gets requests", lambda r: int(r.ready), merge="max"),
    ReplicaMetric("stn_triton_in_flight", "gauge", "Requests that are with a Triton", lambda r: r.in_flight),
    ReplicaMetric("stn_triton_sent_total", "counter", "Requests sent to a Triton", lambda r: r.sent),
    ReplicaMetric("stn_triton_answered_total", "counter", "Requests that a Triton has answered", lambda r: r.answered),
    ReplicaMetric("stn_triton_lost_total", "counter", "Requests that a Triton has lost", lambda r: r.lost),
    ReplicaMetric("stn_triton_ejections_total", "counter", "How often a Triton was given up", lambda r: r.ejections),
)


def gateway_families(replicas: Sequence[Replica], dispatcher: Dispatcher) -> list[Family]:
    """Now."""
    return [
        *(
            Family(
                metric.name,
                metric.kind,
                metric.help,
                {labels(replica=replica.name): metric.value(replica) for replica in replicas},
                metric.merge,
            )
            for metric in REPLICA_METRICS
        ),
        Family("stn_triton_retries_total", "counter", "Requests sent again after a loss", {(): dispatcher.retries}),
    ]
