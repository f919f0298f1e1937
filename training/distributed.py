"""Several processes train one network: each takes its share of every batch, and their gradients are averaged.

    torchrun --nproc-per-node 4 -m stn_serve train digits_rts

On several machines the same command runs on each, with an output folder that all of them share:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m stn_serve train digits

The processes make the same batches, so that they train on what a single one would, whatever their number: without
batch normalisation the weights are the same but for rounding. Batch normalisation sees all of a batch on GPUs, and the
process's share of it on CPUs. Checkpoints, logs and pictures are written by the first process alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """With the processes that `torchrun` has started beside this one, if it has; gives this one's own device."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return _rank() == 0


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process does what stands inside before the others do, such as downloading what they then find."""
    if process_count() > 1 and not is_first():
        dist.barrier()
    yield
    if process_count() > 1 and is_first():
        dist.barrier()


def distribute(network: nn.Module, device: torch.device) -> nn.Module:
    """The network to train: with several processes its gradients are averaged over them."""
    if process_count() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def shares(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of each batch: one row of every `process_count`."""
    for images, targets in batches:
        mine = slice(_rank(), None, process_count())
        if len(targets[mine]):
            yield images[mine], targets[mine]


def agree(what: str, value: int) -> None:
    """See that every process has the same value.

    Raises:
        ValueError: they have not.
    """
    if process_count() == 1:
        return
    values: list[int] = [0] * process_count()
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        raise ValueError(f"{what} differs between the processes: {values}; the output folder must be one they share")


def average(metrics: Mapping[str, float], weight: str, device: torch.device) -> dict[str, float]:
    """Means over what each process has measured, weighted by, and with the sum of, the metric named `weight`."""
    if process_count() == 1:
        return dict(metrics)
    count = metrics[weight]
    sums = torch.tensor([count, *(value * count for value in metrics.values())], dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    total, *values = sums.tolist()
    return {name: value / total for name, value in zip(metrics, values, strict=True)} | {weight: total}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
