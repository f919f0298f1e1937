"""How well sequences are read: as a whole, position by position, by length, and how well the network knows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.models.network import Network

SURE = 0.95
"""Answers of at least this probability are counted apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """Shares in percent. A share of nothing is not a number."""

    right: float
    """Sequences with every position right, the length among them."""
    right_by_position: list[float]
    right_by_length: list[float]
    """Sequences right, of those with one element, with two, and so on."""
    length_right: float
    confidence: float
    """Mean probability of the whole answer; as large as `right` where the network knows how good it is."""
    sure: float
    """Answers of at least `SURE` probability."""
    right_when_sure: float


@torch.no_grad()
def measure_readings(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> Readings:
    """Measure a network of logits `[N, P, K]`, whose last class is the null class, in evaluation mode."""
    network.eval()
    parts = [_read(network, images, targets) for images, targets in batches]
    right, probability, null, targets = (torch.cat(part) for part in zip(*parts, strict=True))
    whole, lengths = right.all(1), (~null).sum(1)
    sure = probability >= SURE
    return Readings(
        right=_percent(whole),
        right_by_position=[_percent(column) for column in right.T],
        right_by_length=[_percent(whole[lengths == length]) for length in range(1, targets.shape[1] + 1)],
        length_right=_percent((targets == lengths[:, None]).all(1)),
        confidence=100 * float(probability.mean()),
        sure=_percent(sure),
        right_when_sure=_percent(whole[sure]),
    )


def _read(network: Network, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is right, how probable the answer is, where nothing stands, and the length answered, at every position."""
    logits = network(images.contiguous(memory_format=torch.channels_last)).logits
    best = logits.softmax(-1).max(-1)
    null = logits.shape[-1] - 1
    answered = (best.indices != null).sum(1, keepdim=True).expand_as(targets)
    return best.indices == targets, best.values.prod(1), targets == null, answered


def _percent(of: Tensor) -> float:
    return 100 * float(of.float().mean())
