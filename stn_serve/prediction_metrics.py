"""Metrics of what models answer: `prediction_statistics`, by model, version and transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from stn_serve.exposition import Family, Kind, Labels, Value, labels
from stn_serve.prediction_statistics import PoseHistograms, PredictionStatistics


class PoseMetric(NamedTuple):
    """A metric of each transformer; its values by axis, or under the empty name where there is just one."""

    name: str
    kind: Kind
    help: str
    values: Callable[[PoseHistograms], Mapping[str, Value]]


POSE_METRICS = (
    PoseMetric(
        "stn_pose_rotation_degrees",
        "histogram",
        "How far the regions that a transformer looks at are turned, clockwise as seen",
        lambda counted: {"": counted.rotation_degrees.buckets()},
    ),
    PoseMetric(
        "stn_pose_scale",
        "histogram",
        "Size of the regions against the image's, along each axis of the output",
        lambda counted: {axis: histogram.buckets() for axis, histogram in counted.scale.items()},
    ),
    PoseMetric(
        "stn_pose_translation",
        "histogram",
        "Centres of the regions, from -1 to 1 over the edges of the image",
        lambda counted: {axis: histogram.buckets() for axis, histogram in counted.translation.items()},
    ),
    PoseMetric(
        "stn_pose_shear",
        "histogram",
        "How far the regions lean, as the tangent of the angle",
        lambda counted: {"": counted.shear.buckets()},
    ),
    PoseMetric(
        "stn_pose_inside_ratio",
        "histogram",
        "Share of the regions that lies inside of the image",
        lambda counted: {"": counted.inside_ratio.buckets()},
    ),
    PoseMetric(
        "stn_pose_mirrored_total",
        "counter",
        "Regions that are looked at in a mirror",
        lambda counted: {"": counted.mirrored},
    ),
)

Counted = Sequence[tuple[Mapping[str, str], PredictionStatistics]]
"""Each version's labels, and what it has answered."""


def prediction_families(counted: Counted) -> Iterator[Family]:
    """What every version has answered so far; none for no versions."""
    if not counted:
        return
    for metric in POSE_METRICS:
        yield Family(metric.name, metric.kind, metric.help, dict(_pose_samples(metric, counted)))
    yield Family(
        "stn_predictions_total",
        "counter",
        "Predictions of each class",
        {
            labels(**model, label=label): count
            for model, statistics in counted
            for label, count in statistics.predictions().items()
        },
    )
    yield Family(
        "stn_prediction_confidence",
        "histogram",
        "Probability of the class that was predicted",
        {labels(**model): statistics.confidence.buckets() for model, statistics in counted},
    )
    yield Family(
        "stn_not_finite_rows_total",
        "counter",
        "Rows of an output that hold infinity or no number",
        {
            labels(**model, output=output): count
            for model, statistics in counted
            for output, count in statistics.not_finite.items()
        },
    )


def _pose_samples(metric: PoseMetric, counted: Counted) -> Iterator[tuple[Labels, Value]]:
    for model, statistics in counted:
        for transformer, histograms in statistics.poses.items():
            for axis, value in metric.values(histograms).items():
                yield labels(**model, transformer=transformer, **({"axis": axis} if axis else {})), value
