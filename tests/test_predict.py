from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import Served

from stn_serve.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `stn predict` and return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stn", "predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        printed = capsys.readouterr()
        return int(exited.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("white", "black")]
    for path, level in zip(paths, (255, 0), strict=True):
        Image.fromarray(np.full((20, 40), level, np.uint8)).save(path)
    return paths


def test_a_table_of_answers(run: Run, images: list[Path], vision_server: Served) -> None:
    code, out, err = run(*images, "--url", vision_server.grpc)
    assert (code, err) == (0, "")
    for said in ("white.png", "bright", "99.3%", "black.png", "dark", "look", "0.50 x 0.50", "around (25, 10)"):
        assert said in out


def test_over_http_with_more_classes(run: Run, images: list[Path], vision_server: Served) -> None:
    code, out, _ = run(images[0], "--url", f"http://{vision_server.http}", "--model", "vision", "--top-k", 3)
    assert code == 0
    assert out.index("bright") < out.index("medium") < out.index("dark")


def test_json_for_programs(run: Run, images: list[Path], vision_server: Served) -> None:
    code, out, _ = run(*images, "--url", vision_server.grpc, "--json")
    assert code == 0
    white, black = (json.loads(line) for line in out.splitlines())
    assert (white["image"], white["label"]) == (str(images[0]), "bright")
    assert black["label"] == "dark"
    assert white["transforms"][0]["theta"] == [[0.5, 0, 0.25], [0, 0.5, 0]]
    assert white["transforms"][0]["pose"]["rotation_degrees"] == 0
    assert white["input_box"] == {"left": 0, "top": 0, "right": 40, "bottom": 20}


@pytest.mark.parametrize("count", [1, 2])
def test_a_picture_of_the_answers(
    run: Run, images: list[Path], vision_server: Served, tmp_path: Path, count: int
) -> None:
    code, _, _ = run(*images[:count], "--url", vision_server.grpc, "--draw", tmp_path / "answer.png")
    assert code == 0
    with Image.open(tmp_path / "answer.png") as picture:
        assert picture.width > 320 * count


def test_a_bad_image_is_reported_after_the_others(
    run: Run, images: list[Path], vision_server: Served, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(images[0].read_bytes()[:40])
    code, out, err = run(images[0], bad, tmp_path / "missing.png", "--url", vision_server.grpc)
    assert code == 2
    assert "bright" in out
    assert err.startswith(f"stn: error: {bad}: ")
    assert "missing.png" in err
    assert err.count("\n") == 1
    assert json.loads(run(bad, "--url", vision_server.grpc, "--json")[1])["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "nothere"), "nothere"),
        (("--url", "127.0.0.1:1"), "no server answers at 127.0.0.1:1"),
        (("--url", "ftp://x"), "expected host:port"),
        (("--draw", "answer.nothing"), "unknown file extension"),
        (("--draw", "nothere/answer.png"), "No such file or directory"),
    ],
)
def test_mistakes_end_in_one_line(
    run: Run, images: list[Path], vision_server: Served, arguments: tuple[str, ...], said: str
) -> None:
    url = () if "--url" in arguments else ("--url", vision_server.grpc)
    code, _, err = run(images[0], *url, *arguments)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_help_shows_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "stn predict digit.png --draw answer.png" in out
