"""How fast our grids, sampler and training loop are against the usual ones, side by side in one run.

    python -m benchmarks.training_speed --threads 1

Grid and sampler: `training.stn` against `F.affine_grid` + `F.grid_sample`, forward and forward + backward. Training
loop: the affine ST-CNN on RTS digits as `stn train digits_rts` trains it (distortions on the device, bfloat16, channels
last), against the loop of tutorials (a `DataLoader` that distorts each digit with PIL, float32). Rounds alternate;
medians, spread and ratios go to benchmarks/results/training_speed.md.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.cells import hardware
from training.checkpoint import build_network
from training.config import load_recipe
from training.data.mnist import load_digits
from training.stn import Affine, Sampler
from training.train import build_optimizer, load_data, training_step

BATCH = 256
STEPS = 4
"""Training steps a round."""
RESULTS = Path(__file__).parent / "results" / "training_speed.md"
SIZES = ((256, 1, 28), (256, 1, 42), (64, 3, 64), (16, 3, 224))
"""Batch, channels, height and width."""


class PilDigits(Dataset[tuple[Tensor, int]]):
    """RTS digits as tutorials make them: one PIL image at a time."""

    def __init__(self) -> None:
        digits = load_digits()
        self.images, self.labels = digits.train_images, digits.train_labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        digit = Image.fromarray(self.images[index])
        rotated = digit.rotate(random.uniform(-45, 45), Image.Resampling.BILINEAR)  # noqa: S311 - no secret
        side = round(28 * random.uniform(0.7, 1.2))  # noqa: S311
        canvas = Image.new("L", (42, 42))
        place = random.randint(0, 42 - side), random.randint(0, 42 - side)  # noqa: S311
        canvas.paste(rotated.resize((side, side), Image.Resampling.BILINEAR), place)
        return torch.from_numpy(np.array(canvas, np.float32) / 255)[None], int(self.labels[index])


FEWEST_ROUNDS = 5
Name = TypeVar("Name")


def time_rounds(
    programs: Mapping[Name, Callable[[], object]], rounds: int, warm_up: int = 2, enough_s: float = math.inf
) -> dict[Name, list[float]]:
    """Seconds of each round of each program, in turn: A B A B; after `enough_s` in all there are fewer, but five."""
    times: dict[Name, list[float]] = {name: [] for name in programs}
    began = time.perf_counter()
    for index in range(warm_up + rounds):
        if index >= warm_up + FEWEST_ROUNDS and time.perf_counter() > began + enough_s:
            break
        for name, program in programs.items():
            started = time.perf_counter()
            program()
            if index >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def milliseconds(seconds: list[float]) -> str:
    """The median of times, from the least to the most."""
    return f"{median(seconds) * 1e3:.2f} ({min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f})"


def sampling(size: tuple[int, int, int], backward: bool) -> dict[str, Callable[[], None]]:
    """Both ways to warp a batch by affine thetas."""
    batch, channels, side = size
    torch.manual_seed(0)
    images = torch.rand(batch, channels, side, side)
    theta = torch.eye(2, 3) + 0.2 * torch.randn(batch, 2, 3)
    theta.requires_grad_(backward)
    transform, sampler = Affine((side, side)), Sampler()

    def ours() -> Tensor:
        _, grid = transform(theta.flatten(1))
        warped: Tensor = sampler(images, grid, grid_is_finite=True)
        return warped

    def torchs() -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def timed(warp: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            warped = warp()
            if backward:
                warped.sum().backward()

        return run

    return {"ours": timed(ours), "torch": timed(torchs)}


def feeding(steps: int) -> dict[str, Callable[[], None]]:
    """Both ways to make batches of RTS digits, `steps` a round."""
    ours, usual = _repeat(_our_batches), _repeat(_usual_batches())
    return {"ours": lambda: _exhaust(islice(ours, steps)), "usual": lambda: _exhaust(islice(usual, steps))}


def training_loops(steps: int) -> dict[str, Callable[[], None]]:
    """The same network trained both ways, `steps` a round: ours as its recipe says, and as tutorials train."""
    recipe = load_recipe("digits_rts")
    network = build_network(recipe, (1, 42, 42), 10).train()
    usual_network = copy.deepcopy(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, usual_optimizer = (build_optimizer(n, recipe.training) for n in (network, usual_network))
    ours, usual = _repeat(_our_batches), _repeat(_usual_batches())

    def train_ours() -> None:
        for images, labels in islice(ours, steps):
            training_step(network, optimizer, images, labels, recipe.training)

    def train_as_usual() -> None:
        for images, labels in islice(usual, steps):
            usual_optimizer.zero_grad()
            F.cross_entropy(usual_network(images).logits, labels).backward()
            usual_optimizer.step()

    return {"ours": train_ours, "usual": train_as_usual}


def _our_batches() -> Iterator[tuple[Tensor, Tensor]]:
    return load_data(load_recipe("digits_rts"), torch.device("cpu")).train_batches(0, BATCH)


def _usual_batches() -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
    loader = DataLoader(PilDigits(), BATCH, shuffle=True, drop_last=True)
    return lambda: loader


def _exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _repeat(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches()


def row(what: str, times: dict[str, list[float]], per_round: int = 1) -> str:
    """A line of the table: medians with spread in milliseconds, and the median of the ratios round by round."""
    ours, usual = times.values()
    ratios = sorted(b / a for a, b in zip(ours, usual, strict=True))
    cells = [
        f"{median(t) * 1e3 / per_round:.2f} ({min(t) * 1e3 / per_round:.2f} to {max(t) * 1e3 / per_round:.2f})"
        for t in (ours, usual)
    ]
    return f"| {what} | {cells[0]} | {cells[1]} | {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"


def main(
    rounds: Annotated[int, typer.Option(help="Counted rounds of each.")] = 25,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = RESULTS,
) -> None:
    """Measure both, and write the table."""
    torch.set_num_threads(threads)
    lines = [
        "# Training speed: ours against the usual way, in one run",
        "",
        f"`python -m benchmarks.training_speed --rounds {rounds} --threads {threads}`,",
        f"{datetime.now(UTC).date().isoformat()}, {hardware(torch.device('cpu'))}. Milliseconds, median (minimum to",
        "maximum); the ratio is the usual way's time by ours, round by round.",
        "",
        "| what | ours, ms | usual, ms | ratio |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        for backward in (False, True):
            times = time_rounds(sampling(size, backward), rounds)
            label = f"{size[0]}x{size[1]}x{size[2]}x{size[2]}"
            lines.append(row(f"grid + sampler, {'forward + backward' if backward else 'forward'}, {label}", times))
            print(lines[-1], flush=True)
    for what, programs in (("RTS digits alone", feeding(STEPS)), ("whole training step", training_loops(STEPS))):
        times = time_rounds(programs, max(3, rounds // 3))
        lines.append(row(f"{what}, batch {BATCH}", times, STEPS))
        print(lines[-1], flush=True)
    output.parent.mkdir(exist_ok=True)
    output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
