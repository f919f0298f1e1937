"""What a network gets right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.models.network import Network

MANY_CLASSES = 10


@torch.no_grad()
def evaluate(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measure a network, in float32 and evaluation mode.

    Returns:
        `error_percent` (images whose top class, or any one of a sequence's, is wrong), `top5_error_percent` (images
        whose class is not among the best five; only of single labels among more than `MANY_CLASSES`), `test_loss` (mean
        cross entropy of an image or position) and `images` (how many there were).
    """
    network.eval()
    wrong = wrong5 = loss = count = 0.0
    for images, targets in batches:
        logits, _ = network(images.contiguous(memory_format=torch.channels_last))
        wrong += int((logits.argmax(-1) != targets).reshape(len(targets), -1).any(-1).sum())
        if has_top5(logits):
            wrong5 += int((logits.topk(5).indices != targets[:, None]).all(-1).sum())
        loss += float(F.cross_entropy(logits.movedim(-1, 1), targets)) * len(targets)
        count += len(targets)
    top5 = {"top5_error_percent": 100 * wrong5 / count} if has_top5(logits) else {}
    return {"error_percent": 100 * wrong / count, **top5, "test_loss": loss / count, "images": count}


def has_top5(logits: Tensor) -> bool:
    """Whether the best five of these classes say something."""
    return logits.dim() == 2 and logits.shape[1] > MANY_CLASSES


@torch.no_grad()
def accuracy_by_class(network: Network, batches: Iterable[tuple[Tensor, Tensor]], classes: int) -> list[float]:
    """Share of each class's images that are right, in percent; not a number for a class without images."""
    network.eval()
    right, count = torch.zeros(classes), torch.zeros(classes)
    for images, targets in batches:
        logits, _ = network(images.contiguous(memory_format=torch.channels_last))
        right += torch.bincount(targets[logits.argmax(-1) == targets].cpu(), minlength=classes)
        count += torch.bincount(targets.flatten().cpu(), minlength=classes)
    percent: list[float] = (100 * right / count).tolist()
    return percent
