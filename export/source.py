"""What is exported: a network, what its classes are called, and the images that it is proven and measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from export.measurement import Labelled
from export.parity_cases import Images
from training.checkpoint import Checkpoint, load_checkpoint
from training.models.network import Network
from training.train import load_data

CALIBRATION_IMAGES = 512
TUNING_IMAGES = 4096
MOST_VALUES = 2**28
"""Of the images that are held at a time: a gigabyte of float32. Large images are fewer."""
UNSEEN_EPOCHS = 1_000_000, 1_000_001
"""Numbers of epochs that no training reaches: training images in an order, and a distortion, of their own."""


class DataSet(Protocol):
    """Labelled images of the kind that the network was trained on."""

    def examples(self, count: int) -> Images:
        """Test images, at most `count`."""

    def calibration(self) -> Images:
        """Training images that give the ranges of activations."""

    def tuning(self) -> list[Labelled]:
        """Training images on which layers are chosen."""

    def validation(self) -> Iterator[Labelled]:
        """The test set, which nothing was chosen on."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network to export, and what comes with it."""

    description: str
    """For people: 'Exporting ... to ONNX.'"""
    network: Network
    """In evaluation mode, on the CPU."""
    labels: tuple[str, ...]
    data: DataSet | None = None
    """None for a network that brings no data set; then there is only float32."""
    own_examples: Images | None = None
    """Of a network without a data set."""
    origin: dict[str, Any] = field(default_factory=dict)
    """For `provenance.json`."""

    def examples(self, count: int) -> Images:
        """Real images, UINT8 `[M, H, W, C]`, M at most `count`."""
        if self.data:
            return self.data.examples(count)
        assert self.own_examples is not None  # noqa: S101 - a source has one or the other
        return self.own_examples[:count]


def from_checkpoint(path: Path) -> Source:
    """What `stn train` wrote.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    trained = load_checkpoint(path)
    origin = {
        "recipe": trained.recipe.to_fields(),
        "seed": trained.recipe.seed,
        "epochs": trained.epoch,
        "data": {"source": trained.data_source, "sha256": trained.data_sha256},
        "metrics": trained.metrics,
    }
    return Source(
        description=f"{path} (recipe '{trained.recipe.name}', epoch {trained.epoch})",
        network=trained.build_network(),
        labels=trained.labels,
        data=RecipeData(trained),
        origin=origin,
    )


@dataclass(frozen=True)
class RecipeData:
    """The data set of a checkpoint's recipe; read when it is first asked for."""

    checkpoint: Checkpoint

    def examples(self, count: int) -> Images:
        """Test images, at most `count`."""
        return _labelled(*next(self._data.test_batches(count)))[0]

    def calibration(self) -> Images:
        """Training images that give the ranges of activations."""
        return self._train_images(UNSEEN_EPOCHS[0], CALIBRATION_IMAGES)[0]

    def tuning(self) -> list[Labelled]:
        """Training images on which layers are chosen."""
        return [self._train_images(UNSEEN_EPOCHS[1], TUNING_IMAGES)]

    def validation(self) -> Iterator[Labelled]:
        """The test set, which nothing was chosen on."""
        return (_labelled(*batch) for batch in self._data.test_batches())

    def _train_images(self, epoch: int, count: int) -> Labelled:
        affordable = max(1, MOST_VALUES // prod(self.checkpoint.input_size))
        return _labelled(*next(self._data.train_batches(epoch, min(count, affordable))))

    @cached_property
    def _data(self) -> Any:  # noqa: ANN401 - one of several data sets with these two methods
        return load_data(self.checkpoint.recipe, torch.device("cpu"))


def _labelled(images: Tensor, classes: Tensor) -> Labelled:
    """As a server gets them: bytes, channels last."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).contiguous()
    return np.asarray(pixels), np.asarray(classes)
