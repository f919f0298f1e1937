"""What ST-CNN Multi costs against the CNN alone: the paper's claim of 6 %, at its full size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.cells import hardware
from benchmarks.export import load
from benchmarks.training_speed import time_rounds
from export.onnx_export import export_onnx
from export.pixel_sampling import sample_by_pixel
from training.checkpoint import build_network
from training.config import Training, load_recipe
from training.data.composed_numbers import LABELS
from training.models.network import Network
from training.train import loss_of

BATCH = 16
SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One comparison."""

    what: str
    size: int
    batch: int
    cnn_ms: float
    multi_ms: float
    rounds: int
    hardware: str
    date: str


def measure_costs(device: torch.device, rounds: int) -> list[Cost]:
    """Forward + backward in float32 and in bfloat16, and inference of the exported networks on the CPU."""
    networks = {name: _network(transformers) for name, transformers in (("cnn", "none"), ("multi", "multi"))}
    costs = []
    for precision in ("fp32", "bf16"):
        training = Training(batch_size=BATCH, precision=precision)
        steps = {name: _step(network, training, device) for name, network in networks.items()}
        costs.append(_cost(f"forward + backward, {precision}", steps, rounds, hardware(device)))
    with TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in networks}
        for name, network in networks.items():
            export_onnx(copy.deepcopy(network).eval(), LABELS, files[name])
        where = hardware(torch.device("cpu"))
        costs.append(_cost("ONNX Runtime, fp32, GridSample alone", _sessions(files), rounds, where))
        sample_by_pixel(files["multi"])
        costs.append(_cost("ONNX Runtime, fp32", _sessions(files), rounds, where))
    return costs


def _network(transformers: str) -> Network:
    torch.manual_seed(0)
    recipe = load_recipe("house_numbers_paper", [f"model.transformers={transformers}", "model.head_std=0.01"])
    return build_network(recipe, (3, SIZE, SIZE), len(LABELS))


def _step(network: Network, training: Training, device: torch.device) -> Callable[[], None]:
    """Forward and backward; waits for the device."""
    learner = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, SIZE, SIZE, device=device)
    targets = torch.randint(len(LABELS), (BATCH, 5), device=device)

    def step() -> None:
        learner.zero_grad()
        loss = loss_of(learner, images, targets, training)
        loss.backward()
        loss.item()

    return step


def _sessions(files: dict[str, Path]) -> dict[str, Callable[[], None]]:
    return {name: _session(path) for name, path in files.items()}


def _session(path: Path) -> Callable[[], None]:
    session = load(path, torch.get_num_threads())
    feed = {"image": np.random.default_rng(0).integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)}
    return lambda: session.run(None, feed)


def _cost(what: str, programs: dict[str, Callable[[], None]], rounds: int, where: str) -> Cost:
    times = {name: 1e3 * median(seconds) for name, seconds in time_rounds(programs, rounds).items()}
    return Cost(
        what=what,
        size=SIZE,
        batch=BATCH,
        cnn_ms=round(times["cnn"], 1),
        multi_ms=round(times["multi"], 1),
        rounds=rounds,
        hardware=where,
        date=datetime.now(UTC).date().isoformat(),
    )
