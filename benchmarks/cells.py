"""One cell of a table: a network trained from a recipe, and measured. What is cut off goes on, what is done stays."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from training.config import Recipe
from training.evaluate import evaluate
from training.models.digits import count_parameters
from training.train import load_data, read_log, train

RESULT = "result.json"

STEPS_BETWEEN_LINES = 500


def run_cell(
    recipe: Recipe,
    tested: str,
    directory: Path,
    device: torch.device,
    cell: Mapping[str, object],
    batch_size: int | None = None,
) -> None:
    """Train a cell, or go on with it, and measure it.

    Args:
        recipe: Of the cell.
        tested: The setting of the recipe that says on how much it is measured.
        directory: Gets the run and `result.json`: `cell`, and what was measured.
        device: Where to compute.
        cell: What tells it from others.
        batch_size: Images of a batch of the measurement, instead of the recipe's.
    """
    if (directory / RESULT).exists():
        return
    network = train(recipe, directory, device, _printing(directory.name)).build_network().to(device)
    data = load_data(recipe.changed([tested]), device)
    metrics = evaluate(network, data.test_batches(batch_size) if batch_size else data.test_batches())
    result = {
        **cell,
        "epochs": recipe.training.epochs,
        "error_percent": round(metrics["error_percent"], 3),
        "test_images": int(metrics["images"]),
        "parameters": count_parameters(network),
        "training_minutes": round(sum(entry["seconds"] for entry in read_log(directory)) / 60, 1),
        "hardware": hardware(device),
        "date": datetime.now(UTC).date().isoformat(),
    }
    (directory / RESULT).write_text(json.dumps(result))
    print(f"{directory.name}: {result['error_percent']} %", flush=True)


def results(runs: Path) -> list[dict[str, Any]]:
    """Of the cells that are done."""
    return [json.loads(file.read_text()) for file in sorted(runs.glob(f"*/{RESULT}"))]


def hardware(device: torch.device) -> str:
    """What a network was trained on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} thread(s) of a {platform.machine()} CPU"


def _printing(name: str) -> Callable[[int, int, float], None]:
    started = time.monotonic()

    def watch(step: int, steps: int, loss: float) -> None:
        if step % STEPS_BETWEEN_LINES == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"{name}: step {step}/{steps}, loss {loss:.3f}, {minutes:.0f} min", flush=True)

    return watch
