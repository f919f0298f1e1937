"""What a precision costs and brings: accuracy, theta and speed beside float32, on the machine that exports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from export.parity_cases import Images
from stn_serve.model import Model

Labelled = tuple[Images, NDArray[np.int64]]
"""Images `[N, H, W, C]` and their classes `[N]`, or `[N, P]` of sequences."""

SPEED_BATCHES = (1, 16)
ROUNDS = 30
ENOUGH_S = 2.0
"""Of timing each batch size; at least `FEWEST_ROUNDS` are run."""
FEWEST_ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Medians of alternating runs in one process."""

    batch: int
    ms: float
    fp32_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A model beside the same one in float32, on a validation set."""

    images: int
    accuracy_percent: float
    """Sequences are right where every position is."""
    fp32_accuracy_percent: float
    top_class_agreement: float
    theta_max_error: float
    theta_mean_error: float
    speed: tuple[Speed, ...]
    provider: str

    @property
    def lost_points(self) -> float:
        """Percentage points less than float32."""
        return self.fp32_accuracy_percent - self.accuracy_percent


def measure(model: Model, fp32: Model, validation: Iterable[Labelled]) -> Measurement:
    """Both models on the same images, in the batches they come in, cut to what the models take."""
    right = fp32_right = same = count = 0
    theta_errors: list[NDArray[np.float64]] = []
    images: Images | None = None
    for images, classes in batches(validation, model.max_batch_size):
        answer, reference = model.run({"image": images}), fp32.run({"image": images})
        top, fp32_top = answer["logits"].argmax(-1), reference["logits"].argmax(-1)
        right += _matches(top, classes)
        fp32_right += _matches(fp32_top, classes)
        same += _matches(top, fp32_top)
        count += len(images)
        if "theta" in answer:
            theta_errors.append(np.abs(answer["theta"].astype(np.float64) - reference["theta"]).reshape(-1))
    errors = np.concatenate(theta_errors) if theta_errors else np.zeros(1)
    assert images is not None, "an empty validation set"  # noqa: S101 - data sets are never empty
    return Measurement(
        images=count,
        accuracy_percent=100 * right / count,
        fp32_accuracy_percent=100 * fp32_right / count,
        top_class_agreement=same / count,
        theta_max_error=float(errors.max()),
        theta_mean_error=float(errors.mean()),
        speed=tuple(compare_speed(model, fp32, images, SPEED_BATCHES)),
        provider=model.session.get_providers()[0],
    )


def accuracy_percent(session: ort.InferenceSession, data: Iterable[Labelled]) -> float:
    """Share of the images whose answer is right."""
    right = count = 0
    for images, classes in batches(data, 256):
        logits = session.run(["logits"], {"image": images})[0]
        right += _matches(logits.argmax(-1), classes)
        count += len(images)
    return 100 * right / count


def compare_speed(model: Model, fp32: Model, images: Images, sizes: Sequence[int]) -> list[Speed]:
    """Median times of one batch, both models in turn."""
    return [_speed(model, fp32, np.resize(images, (size, *images.shape[1:]))) for size in sizes if _takes(model, size)]


def batches(data: Iterable[Labelled], size: int) -> Iterable[Labelled]:
    """The same images in batches of at most `size`; of 0 one by one."""
    step = max(size, 1)
    for images, classes in data:
        for start in range(0, len(images), step):
            yield images[start : start + step], classes[start : start + step]


def _takes(model: Model, size: int) -> bool:
    return size <= max(model.max_batch_size, 1)


def _speed(model: Model, fp32: Model, images: Images) -> Speed:
    times: dict[str, list[float]] = {"model": [], "fp32": []}
    started = time.perf_counter()
    while len(times["fp32"]) < FEWEST_ROUNDS or (
        len(times["fp32"]) < ROUNDS and time.perf_counter() - started < ENOUGH_S
    ):
        for name, program in (("model", model), ("fp32", fp32)):
            began = time.perf_counter()
            program.run({"image": images})
            times[name].append(1e3 * (time.perf_counter() - began))
    return Speed(batch=len(images), ms=round(median(times["model"]), 4), fp32_ms=round(median(times["fp32"]), 4))


def _matches(answers: NDArray[np.int64], expected: NDArray[np.int64]) -> int:
    return int((answers == expected).reshape(len(answers), -1).all(-1).sum())
