"""`stn train` and `stn evaluate`, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SMALL = ["--set", "data.source=scikit-learn", "--set", "model.width=4", "--set", "training.epochs=2"]


def stn(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "stn_serve", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    result = stn("train", "digits_rts", *SMALL, folder=folder)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_train_writes_checkpoint_log_and_pictures(run: tuple[Path, str]) -> None:
    folder, printed = run
    assert "test error" in printed
    assert "stn export" in printed
    assert {path.name for path in (folder / "runs/digits_rts").iterdir()} == {
        "checkpoint.pt",
        "curves.png",
        "log.jsonl",
        "transforms.png",
    }
    with Image.open(folder / "runs/digits_rts/transforms.png") as sheet:
        assert sheet.width > 1000


def test_evaluate_repeats_the_measurement(run: tuple[Path, str]) -> None:
    folder, printed = run
    result = stn("evaluate", "runs/digits_rts/checkpoint.pt", "--picture", "x.png", folder=folder)
    assert result.returncode == 0, result.stderr
    error = printed.partition("test error ")[2].partition(" %")[0]
    assert f"test error {error} % on 360 images" in result.stdout
    assert (folder / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nope"], "no recipe 'nope'"),
        (["train", "digits_rts", "--set", "training.epochs=x"], "training.epochs"),
        (["train", "digits_rts", "--device", "warp9"], "--device warp9"),
        (["evaluate", "nope.pt"], "there is no checkpoint nope.pt"),
        (["evaluate", __file__], "is not a checkpoint"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = stn(*arguments, folder=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_has_examples(command: str, tmp_path: Path) -> None:
    result = stn(command, "--help", folder=tmp_path)
    assert f"stn {command} " in result.stdout
