"""What a network gets right."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from training.models.network import Network


@torch.no_grad()
def evaluate(network: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Measure a network, in float32 and evaluation mode.

    Returns:
        `error_percent` (images whose top class, or any one of a sequence's, is wrong), `test_loss` (mean cross entropy
        of an image or position) and `images` (how many there were).
    """
    network.eval()
    wrong = loss = count = 0.0
    for images, targets in batches:
        logits, _ = network(images.contiguous(memory_format=torch.channels_last))
        wrong += int((logits.argmax(-1) != targets).reshape(len(targets), -1).any(-1).sum())
        loss += float(F.cross_entropy(logits.movedim(-1, 1), targets)) * len(targets)
        count += len(targets)
    return {"error_percent": 100 * wrong / count, "test_loss": loss / count, "images": count}
