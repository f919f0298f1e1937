"""The training loop: one readable loop in plain PyTorch, resumed where it was cut off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.checkpoint import Checkpoint, CheckpointError, build_network, load_checkpoint, save_checkpoint
from training.config import Recipe, RecipeError, Training
from training.data.loading import DataSet, open_data
from training.distributed import agree, average, distribute, first_before_others, is_first, process_count, shares
from training.evaluate import evaluate
from training.models.network import Network
from training.stn import parameter_groups

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
WARM_UP = 0.1
"""Share of the steps in which `one_cycle` climbs to the learning rate."""

Watch = Callable[[int, int, float], None]
"""Called after every step with the steps done, the steps in all, and the loss."""


def train(recipe: Recipe, directory: Path, device: torch.device, watch: Watch | None = None) -> Checkpoint:
    """Train a recipe to its end; a run of the same recipe that was cut off in `directory` goes on.

    Where `distributed.joined` has joined several processes, all of them call this.

    Args:
        recipe: what to train.
        directory: where the checkpoint and the log go, after every epoch.
        device: where to train.
        watch: told of every step.

    Returns:
        The last checkpoint, also when it had been reached before.

    Raises:
        CheckpointError: the directory holds a run of another recipe, or the recipe begins with no checkpoint.
        DataError: the data cannot be had.
        WeightsError: a pretrained network cannot be had.
        RecipeError: a batch cannot be shared out to the processes.
    """
    _check_shares(recipe.training.batch_size)
    recipe = recipe.resolved()
    data = load_data(recipe, device)
    torch.manual_seed(recipe.seed)
    network = build_network(recipe, data.input_size, len(data.labels))
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    optimizer = build_optimizer(network, recipe.training)
    checkpoint = _resume(recipe, directory, network, optimizer)
    if checkpoint is None:
        begin(network, recipe.training)
    start = checkpoint.epoch if checkpoint else 0
    agree(f"the epoch of {directory / CHECKPOINT}", start)
    learner = distribute(network, device)

    steps_per_epoch = max(1, data.train_count // recipe.training.batch_size)
    steps = steps_per_epoch * recipe.training.epochs
    for epoch in range(start, recipe.training.epochs):
        torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # a resumed run drops out what an uninterrupted one does
        learner.train()
        started, losses = time.perf_counter(), []
        for index, (images, targets) in enumerate(shares(data.train_batches(epoch, recipe.training.batch_size))):
            step = epoch * steps_per_epoch + index
            set_learning_rate(optimizer, learning_rate_factor(recipe.training, step / steps))
            loss = training_step(learner, optimizer, images, targets, recipe.training)
            losses.append(loss.detach())
            if watch:
                watch(step + 1, steps, float(losses[-1]))
        metrics = _measure(network, data, device) if is_evaluated(epoch + 1, recipe.training) else {}
        checkpoint = Checkpoint(
            recipe=recipe,
            labels=data.labels,
            input_size=data.input_size,
            epoch=epoch + 1,
            model=network.state_dict(),
            optimizer=optimizer.state_dict(),
            data_source=data.source,
            data_sha256=data.sha256,
            metrics=metrics,
        )
        seconds = round(time.perf_counter() - started, 2)
        if is_first():
            save_checkpoint(checkpoint, directory / CHECKPOINT)
            loss_of_epoch = float(torch.stack(losses).mean())
            _log(directory, {"epoch": epoch + 1, "loss": loss_of_epoch, "seconds": seconds, **metrics})
    assert checkpoint  # noqa: S101 - a recipe has at least one epoch
    return checkpoint


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, training: Training
) -> Tensor:
    """One step of gradient descent; the loss of the batch before it."""
    loss = loss_of(network, images, targets, training)
    optimizer.zero_grad()
    loss.backward()
    if training.gradient_clip:
        nn.utils.clip_grad_norm_(network.parameters(), training.gradient_clip)
    optimizer.step()
    return loss


def loss_of(network: nn.Module, images: Tensor, targets: Tensor, training: Training) -> Tensor:
    """The mean cross entropy of a batch; of sequences over all positions."""
    images = images.contiguous(memory_format=torch.channels_last)
    with autocast(images.device, training):
        logits, _ = network(images)
    return F.cross_entropy(logits.float().movedim(-1, 1), targets, label_smoothing=training.label_smoothing)


def load_data(recipe: Recipe, device: torch.device) -> DataSet:
    """The data set of a recipe."""
    with first_before_others():
        return open_data(recipe.data, device, recipe.seed)


def begin(network: Network, training: Training) -> None:
    """Fill in the weights that training starts with.

    Raises:
        CheckpointError: the recipe begins with a checkpoint that is not there.
        ValueError: its weights do not fit; or a pretrained network cannot be had (`WeightsError`).
    """
    if training.warm_start:
        network.adopt(load_checkpoint(Path(training.warm_start)).build_network())
    else:
        network.load_pretrained()


def build_optimizer(network: Network, training: Training) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW, with a learning rate of their own for localisation networks."""
    groups = parameter_groups(network, training.learning_rate, training.localization_multiplier)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=True)
    return torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay, fused=True)


def learning_rate_factor(training: Training, progress: float) -> float:
    """What the learning rate is multiplied by, `progress` from 0 to 1 through the recipe."""
    if training.schedule == "step":
        return 0.1 ** int(training.steps * progress)
    if progress < WARM_UP:
        return 0.02 + 0.98 * progress / WARM_UP
    return (1 + cos(pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's own rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def autocast(device: torch.device, training: Training) -> AbstractContextManager[Any]:
    """The recipe's precision. Grids stay in float32: see `training.stn.Transform`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")


def is_evaluated(epoch: int, training: Training) -> bool:
    """Spread evenly over the run, the last epoch always among them."""
    return epoch % max(1, training.epochs // training.evaluations) == 0 or epoch == training.epochs


def read_log(directory: Path) -> Iterator[dict[str, float]]:
    """The log of a run, one dictionary an epoch."""
    with (directory / LOG).open() as lines:
        yield from map(json.loads, lines)


def _check_shares(batch_size: int) -> None:
    count = process_count()
    if batch_size % count:
        raise RecipeError(f"training.batch_size: expected a multiple of the {count} processes, got {batch_size}")


def _measure(network: Network, data: DataSet, device: torch.device) -> dict[str, float]:
    return average(evaluate(network, shares(data.test_batches())), "images", device)


def _resume(recipe: Recipe, directory: Path, network: Network, optimizer: torch.optim.Optimizer) -> Checkpoint | None:
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    if checkpoint.recipe != recipe:
        raise CheckpointError(
            f"{path} is a run of a different recipe ('{checkpoint.recipe.name}', or the same one with other settings); "
            "give another --output, or --restart to begin anew"
        )
    network.load_state_dict(checkpoint.model)
    optimizer.load_state_dict(checkpoint.optimizer)
    return checkpoint


def _log(directory: Path, entry: dict[str, float]) -> None:
    with (directory / LOG).open("a") as lines:
        lines.write(json.dumps(entry) + "\n")
