"""What a second process brings: one recipe alone and under torchrun, by time an epoch and by what was learned.

    python -m benchmarks.distributed_training --help
    python -m benchmarks.distributed_training            # two processes, one CPU thread each, against one: minutes

Runs alternate, so that both meet the same machine; the first epoch of each run warms up and is not counted.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from training.train import read_log

RESULT = Path(__file__).parent / "results" / "distributed_training.md"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def run(recipe: str, epochs: int, processes: int, output: Path) -> list[dict[str, float]]:
    """Train once, each process with one thread; the log of the run."""
    launcher = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else []
    settings = ["--set", f"training.epochs={epochs}", "--output", str(output)]
    command = [sys.executable, *launcher, "-m", "stn_serve", "train", recipe, *settings]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return list(read_log(output))


def main(
    recipe: Annotated[str, typer.Option(help="What to train.")] = "digits_r",
    epochs: Annotated[int, typer.Option(min=2, help="Of each run.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 2,
    processes: Annotated[int, typer.Option(min=2, help="That share the work.")] = 2,
) -> None:
    """Compare, print and write the table."""
    seconds: dict[int, list[float]] = {1: [], processes: []}
    errors: dict[int, list[float]] = {1: [], processes: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for count in seconds:
                log = run(recipe, epochs, count, Path(folder) / f"{count}-{number}")
                seconds[count] += [entry["seconds"] for entry in log[1:]]
                errors[count].append(log[-1]["error_percent"])
    table = markdown(recipe, epochs, rounds, seconds, errors)
    RESULT.write_text(table)
    print(table)


def markdown(
    recipe: str, epochs: int, rounds: int, seconds: dict[int, list[float]], errors: dict[int, list[float]]
) -> str:
    """The comparison."""
    alone, together = seconds
    lines = [
        "# Training in several processes",
        "",
        (
            f"`python -m benchmarks.distributed_training --recipe {recipe} --epochs {epochs} --rounds {rounds} "
            f"--processes {together}`,"
        ),
        (
            f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} {platform.machine()} cores, a thread each. "
            "Median (minimum to maximum)."
        ),
        "",
        "| processes | seconds an epoch | test error, % |",
        "|---|---|---|",
    ]
    for count in (alone, together):
        times = seconds[count]
        spread = f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        lines.append(f"| {count} | {spread} | {', '.join(f'{error:.2f}' for error in errors[count])} |")
    ratio = median(seconds[alone]) / median(seconds[together])
    return "\n".join([*lines, "", f"{together} processes are {ratio:.2f} times as fast as one.", ""])


if __name__ == "__main__":
    typer.run(main)
