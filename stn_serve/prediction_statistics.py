"""What a model answers, counted: where its transformers look, which classes it names, and how sure it is.

Accuracy cannot be watched where nobody knows the right answers. Where a model looks can: a camera that was turned, a
broken decoder or a new kind of image shows in the poses at once. Every theta and every logit that is
answered is counted, whoever asked and by whatever protocol; what nobody asked for is not computed and so not counted.

An answer is only noted. Many rows are counted at once, by a thread of its own or when the metrics are read: one at a
time they would take numpy twenty times as long.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stn_serve.histograms import Histogram
from stn_serve.metadata import ModelMetadata
from stn_serve.poses import Box, poses

Array = NDArray[Any]

ROWS_AT_ONCE = 128
MOST_WAITING = 32 * ROWS_AT_ONCE
"""Rows. With more of them whoever brings the last counts them: memory stays bounded, and nothing is lost."""

MAX_LABELS = 256
"""Classes with a series of their own, in the order of the labels; the others share one."""
OTHER = "(other)"

ROTATION = tuple(float(degrees) for degrees in np.arange(-172.5, 180, 15))
"""Steps of 15 degrees around the circle, centred on 0 and the right angles, where noise would else flip between two
buckets. What is left and right of +-180 is one direction: the first bucket and the last are its two halves."""
SCALE = tuple(round(2 ** (half / 2 + 0.25), 4) for half in range(-9, 5))
"""Steps of the square root of 2, since twice as large and half as large are changes of one size. Centred on its powers,
of which 1, the whole image, is one; from 1/19 of the image's side to 5 sides."""
TRANSLATION = (-2.0, -1.5, -1.125, -0.875, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 0.875, 1.125, 1.5, 2.0)
"""Eighths of the image, centred on 0; beyond 1 the centre lies outside of it."""
SHEAR = (-1.0, -0.625, -0.375, -0.125, 0.125, 0.375, 0.625, 1.0)
INSIDE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)
"""Finer towards 1, where a good model is; the first bucket is what looks at nothing of the image."""
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)

_counting = ThreadPoolExecutor(1, thread_name_prefix="predictions")


class PoseHistograms:
    """The poses of one transformer. By axis: x, y and, in three dimensions, z of its output."""

    def __init__(self, dimensions: int) -> None:
        axes = "xyz"[:dimensions]
        self.rotation_degrees = Histogram(ROTATION)
        self.scale = {axis: Histogram(SCALE) for axis in axes}
        self.translation = {axis: Histogram(TRANSLATION) for axis in axes}
        self.shear = Histogram(SHEAR)
        self.inside_ratio = Histogram(INSIDE)
        self.mirrored = 0

    def add(self, thetas: Array, frame: Box, regularization: float) -> None:
        """Count finite thetas `[N, rows, columns]`."""
        found = poses(thetas, frame, regularization)
        self.rotation_degrees.add_all(found.rotation_degrees)
        for number, axis in enumerate(self.scale):
            self.scale[axis].add_all(np.abs(found.scale[:, number]))
            self.translation[axis].add_all(found.translation[:, number])
        self.shear.add_all(found.shear)
        self.inside_ratio.add_all(found.inside_ratio)
        self.mirrored += int(np.count_nonzero(found.determinant < 0))


class PredictionStatistics:
    """Of one version of a model that carries `stn` metadata. Threads may share it."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self.confidence = Histogram(CONFIDENCE)
        dimensions = 3 if metadata.transform == "affine_3d" else 2
        self.poses = {transformer.name: PoseHistograms(dimensions) for transformer in metadata.transformers}
        self.not_finite: Counter[str] = Counter(logits=0, theta=0)
        """Rows of an output that hold something else than finite numbers; they are counted nowhere else."""
        self._labels = metadata.labels
        self._predictions = np.zeros(len(metadata.labels), np.int64)
        # The model's view: what a caller's image had been before it was resized, tensors do not tell.
        self._frame = Box(0, 0, metadata.input.width, metadata.input.height)
        self._regularization = metadata.control_grid.regularization if metadata.control_grid else 0.0
        self._noted: list[Mapping[str, Array]] = []
        self._rows = 0
        self._noting = threading.Lock()
        self._counting = threading.Lock()

    def note(self, outputs: Mapping[str, Array]) -> None:
        """Take in the outputs of one request: logits `[N, ..., K]`, theta `[N, S, ...]`, or one of them."""
        kept = {name: outputs[name].copy() for name in ("logits", "theta") if name in outputs}
        if not kept:
            return
        with self._noting:
            before = self._rows
            self._noted.append(kept)
            self._rows += len(next(iter(kept.values())))
            waiting = self._rows
        if waiting >= MOST_WAITING:
            self.count()
        elif before < ROWS_AT_ONCE <= waiting:
            _counting.submit(self.count)

    def count(self) -> None:
        """Count what has been noted."""
        with self._counting:
            with self._noting:
                noted, self._noted, self._rows = self._noted, [], 0
            for name, add in (("logits", self._add_logits), ("theta", self._add_thetas)):
                batches = [kept[name] for kept in noted if name in kept]
                for rows in _in_chunks(batches):
                    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
                    self.not_finite[name] += int(np.count_nonzero(~finite))
                    if finite.any():
                        add(rows[finite])

    def predictions(self) -> dict[str, int]:
        """How often each class came first; of a sequence at each of its positions."""
        counted: Counter[str] = Counter()
        for number, (label, count) in enumerate(zip(self._labels, self._predictions.tolist(), strict=True)):
            counted[label if number < MAX_LABELS else OTHER] += count
        return dict(counted)

    def _add_logits(self, logits: Array) -> None:
        flat = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
        self._predictions += np.bincount(flat.argmax(axis=1), minlength=len(self._predictions))
        flat -= flat.max(axis=1, keepdims=True)
        self.confidence.add_all(1 / np.exp(flat).sum(axis=1))

    def _add_thetas(self, thetas: Array) -> None:
        for number, histograms in enumerate(self.poses.values()):
            histograms.add(thetas[:, number], self._frame, self._regularization)


def _in_chunks(batches: Sequence[Array]) -> list[Array]:
    if not batches:
        return []
    rows = np.concatenate(batches)
    return [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
