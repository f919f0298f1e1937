from __future__ import annotations

import threading
from collections import Counter
from itertools import pairwise
from math import cos, radians, sin

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from stn_serve.exposition import Buckets
from stn_serve.metadata import ControlGrid, InputImage, ModelMetadata, Transformer, TransformKind
from stn_serve.poses import Array, Box, control_points, pose
from stn_serve.prediction_statistics import (
    CONFIDENCE,
    INSIDE,
    MAX_LABELS,
    MOST_WAITING,
    OTHER,
    ROTATION,
    SCALE,
    TRANSLATION,
    PredictionStatistics,
)

FRAME = Box(0, 0, 42, 28)


def metadata(transform: TransformKind = "affine", transformers: int = 1, classes: int = 3) -> ModelMetadata:
    return ModelMetadata(
        task="classification",
        labels=tuple(f"class_{number}" for number in range(classes)),
        input=InputImage(height=28, width=42, color="gray"),
        transform=transform,
        transformers=tuple(
            Transformer(name=f"look_{number}", place="image", output_size=(14, 14)) for number in range(transformers)
        ),
        control_grid=ControlGrid(size=4, regularization=0.1) if transform == "thin_plate_spline" else None,
    )


def thetas(transform: TransformKind, rows: int, seed: int = 0) -> Array:
    noise = 0.4 * np.random.default_rng(seed).standard_normal((rows, 16, 4))
    match transform:
        case "thin_plate_spline":
            return control_points(4) + noise[:, :, :2]
        case "projective":
            return np.eye(3) + noise[:, :3, :3] * [[1, 1, 1], [1, 1, 1], [0.3, 0.3, 0]]
        case "affine_3d":
            return np.eye(3, 4) + noise[:, :3, :]
        case _:
            return np.eye(2, 3) + noise[:, :2, :3]


def counted(values: list[float], bounds: tuple[float, ...]) -> list[int]:
    """As Prometheus defines a bucket: up to and including its bound."""
    edges = [-np.inf, *bounds, np.inf]
    return [sum(low < value <= high for value in values) for low, high in pairwise(edges)]


def rotated(degrees: float) -> Array:
    """A rotation on the image as seen, which is half as wide again as high."""
    turn = radians(degrees)
    return np.array([[cos(turn), -sin(turn) / 1.5, 0], [sin(turn) * 1.5, cos(turn), 0]])


def total(buckets: Buckets) -> int:
    return sum(buckets.counts)


@pytest.mark.parametrize("transform", ["affine", "projective", "thin_plate_spline", "affine_3d"])
def test_poses_are_counted_as_they_are_answered(transform: TransformKind) -> None:
    """Against the poses of the typed API, one by one."""
    statistics = PredictionStatistics(metadata(transform))
    batches = [thetas(transform, rows, seed)[:, None] for seed, rows in enumerate((1, 7, 200, 3))]
    for batch in batches:
        statistics.note({"theta": batch.astype(np.float32)})
    statistics.count()
    regularization = 0.1 if transform == "thin_plate_spline" else 0.0
    answered = [pose(theta, FRAME, regularization) for theta in np.concatenate(batches)[:, 0].astype(np.float32)]
    found = statistics.poses["look_0"]
    rotations = found.rotation_degrees.buckets()
    assert list(rotations.counts) == counted([one.rotation_degrees for one in answered], ROTATION)
    assert rotations.sum == pytest.approx(sum(one.rotation_degrees for one in answered))
    assert list(found.inside_ratio.buckets().counts) == counted([one.inside_ratio for one in answered], INSIDE)
    for number, axis in enumerate("xyz" if transform == "affine_3d" else "xy"):
        scales = [abs(one.scale[number]) for one in answered]
        assert list(found.scale[axis].buckets().counts) == counted(scales, SCALE)
        centres = [one.translation[number] for one in answered]
        assert list(found.translation[axis].buckets().counts) == counted(centres, TRANSLATION)
    assert found.mirrored == sum(one.determinant < 0 for one in answered)


def test_each_transformer_is_counted_for_itself() -> None:
    statistics = PredictionStatistics(metadata(transformers=2))
    statistics.note({"theta": np.stack([rotated(30), rotated(-60)])[None]})
    statistics.count()
    first, second = (statistics.poses[name].rotation_degrees.buckets() for name in ("look_0", "look_1"))
    assert [first.sum, second.sum] == pytest.approx([30, -60])


@given(st.integers(-11, 12), st.floats(-7, 7))
def test_noise_around_a_multiple_of_15_degrees_stays_in_its_bucket(step: int, noise: float) -> None:
    """Around 180 degrees in one of the two halves of its bucket."""

    def bucket(degrees: float) -> int:
        statistics = PredictionStatistics(metadata())
        statistics.note({"theta": rotated(degrees)[None, None]})
        statistics.count()
        return statistics.poses["look_0"].rotation_degrees.buckets().counts.index(1) % len(ROTATION)

    assert bucket(step * 15 + noise) == bucket(step * 15) % len(ROTATION)


def test_scales_are_spaced_evenly_in_the_logarithm() -> None:
    ratios = [high / low for low, high in pairwise(SCALE)]
    assert ratios == pytest.approx([2**0.5] * len(ratios), rel=2e-3)


def test_classes_and_confidence_are_the_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (300, 3)).astype(np.float32)
    statistics = PredictionStatistics(metadata())
    for rows in np.split(logits, [1, 100, 250]):
        statistics.note({"logits": rows})
    statistics.count()
    probabilities = softmax(logits.astype(np.float64), axis=1)
    expected = Counter(f"class_{number}" for number in probabilities.argmax(axis=1))
    assert statistics.predictions() == expected
    assert list(statistics.confidence.buckets().counts) == counted(probabilities.max(axis=1).tolist(), CONFIDENCE)


def test_of_a_sequence_every_position_counts() -> None:
    statistics = PredictionStatistics(metadata())
    statistics.note({"logits": np.eye(3, dtype=np.float32)[[[0, 1], [1, 1]]]})
    statistics.count()
    assert statistics.predictions() == {"class_0": 1, "class_1": 3, "class_2": 0}


def test_many_classes_share_a_series() -> None:
    statistics = PredictionStatistics(metadata(classes=1000))
    statistics.note({"logits": np.eye(1000, dtype=np.float32)})
    statistics.count()
    predictions = statistics.predictions()
    assert len(predictions) == MAX_LABELS + 1
    assert predictions[OTHER] == 1000 - MAX_LABELS
    assert predictions["class_0"] == predictions[f"class_{MAX_LABELS - 1}"] == 1


def test_what_is_not_finite_is_counted_apart() -> None:
    statistics = PredictionStatistics(metadata())
    theta = np.stack([rotated(0), rotated(0), rotated(0)])[:, None]
    theta[0, 0, 0, 0], theta[1, 0, 1, 2] = np.nan, -np.inf
    statistics.note({"theta": theta, "logits": np.array([[0, np.inf, 0], [0, 1, 0], [0, 1, 0]])})
    statistics.count()
    assert dict(statistics.not_finite) == {"logits": 1, "theta": 2}
    assert total(statistics.poses["look_0"].scale["x"].buckets()) == 1
    assert sum(statistics.predictions().values()) == 2


def test_what_nobody_asked_for_is_not_counted() -> None:
    statistics = PredictionStatistics(metadata())
    statistics.note({"logits": np.zeros((2, 3))})
    statistics.note({"features": np.zeros((5, 8))})
    statistics.count()
    assert total(statistics.confidence.buckets()) == 2
    assert total(statistics.poses["look_0"].shear.buckets()) == 0


def test_the_memory_of_a_batch_may_be_used_again() -> None:
    statistics = PredictionStatistics(metadata())
    batch = np.ones((1, 1, 2, 3)) * rotated(45)
    statistics.note({"theta": batch})
    batch[:] = 0
    statistics.count()
    assert statistics.poses["look_0"].rotation_degrees.buckets().sum != 0


def test_threads_lose_nothing() -> None:
    statistics = PredictionStatistics(metadata())
    theta = np.repeat(rotated(10)[None, None], 3, axis=0)

    def note() -> None:
        for _ in range(500):
            statistics.note({"theta": theta, "logits": np.zeros((3, 3), np.float32)})

    threads = [threading.Thread(target=note) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statistics.count()
    assert total(statistics.poses["look_0"].rotation_degrees.buckets()) == 4 * 500 * 3
    assert total(statistics.confidence.buckets()) == 4 * 500 * 3


def test_a_flood_is_counted_by_who_brings_it() -> None:
    """Rather than kept: memory stays bounded."""
    statistics = PredictionStatistics(metadata())
    statistics.note({"theta": np.repeat(rotated(10)[None, None], MOST_WAITING, axis=0)})
    assert total(statistics.poses["look_0"].rotation_degrees.buckets()) == MOST_WAITING
