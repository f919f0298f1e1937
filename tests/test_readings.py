"""What is right of sequences: counted on a network whose answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.evaluate import evaluate
from training.models.network import Answer, Network
from training.readings import measure_readings

NULL = 2
TARGETS = torch.tensor([[0, NULL, NULL], [1, 0, NULL], [1, 1, NULL], [0, 1, 1]])
ANSWERS = torch.tensor([[0, NULL, NULL], [1, 1, NULL], [1, NULL, NULL], [0, 1, 1]])
"""Right; a wrong digit; a digit too few; right."""


class Known(Network):
    """Answers each image, which holds its own number, with a probability of 0.99 or, the last, of about a third."""

    input_size = (1, 1, 1)

    def forward(self, images: Tensor) -> Answer:
        index = images.flatten().long()
        strength = torch.where(index == len(ANSWERS) - 1, 0.01, math.log(2 * 0.99 / 0.01))
        one_hot = torch.nn.functional.one_hot(ANSWERS[index], 3).float()
        return Answer(one_hot * strength[:, None, None], None)


def batches() -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(4.0).reshape(4, 1, 1, 1)
    return [(images[:3], TARGETS[:3]), (images[3:], TARGETS[3:])]


def test_whole_sequences_positions_lengths_and_confidence() -> None:
    readings = measure_readings(Known(), batches())
    assert readings.right == 50
    assert readings.right == 100 - evaluate(Known(), batches())["error_percent"]
    assert readings.right_by_position == [100, 50, 100]
    assert readings.right_by_length == [100, 0, 100]
    assert readings.length_right == 75
    assert readings.sure == 75
    assert readings.right_when_sure == pytest.approx(100 / 3)
    third = math.exp(0.01) / (math.exp(0.01) + 2)
    assert readings.confidence == pytest.approx(100 * (3 * 0.99**3 + third**3) / 4, rel=1e-4)
