"""`torchrun`: several processes learn what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from training.checkpoint import load_checkpoint
from training.train import CHECKPOINT, LOG

# No batch normalisation, whose statistics are each process's own on a CPU; and SGD, which does not magnify rounding.
RECIPE = """
[data]
source = "scikit-learn"

[data.distortion]
canvas = 28
rotation_degrees = 45

[model]
classifier = "fcn"
width = 16

[training]
epochs = 2
batch_size = 96
"""


def train(tmp_path: Path, name: str, *torchrun: str) -> Path:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    output = tmp_path / name
    command = [sys.executable, *torchrun, "-m", "stn_serve", "train", str(recipe), "--output", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Finished: test error") == 1
    return output


def test_two_processes_learn_what_one_does_and_write_once(tmp_path: Path) -> None:
    alone = train(tmp_path, "alone")
    together = train(tmp_path, "together", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    one, two = (load_checkpoint(output / CHECKPOINT) for output in (alone, together))
    for name, weight in one.model.items():
        torch.testing.assert_close(two.model[name], weight, atol=1e-5, rtol=1e-4)
    assert two.metrics["images"] == one.metrics["images"]
    assert abs(two.metrics["error_percent"] - one.metrics["error_percent"]) < 0.3
    assert [json.loads(line)["epoch"] for line in (together / LOG).read_text().splitlines()] == [1, 2]
    assert (together / "transforms.png").exists()


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("96", "97"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stn_serve"]
    result = subprocess.run(
        [*command, "train", str(recipe), "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode != 0
    assert "training.batch_size: expected a multiple of the 2 processes, got 97" in result.stderr + result.stdout
