from __future__ import annotations

import json
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from served import Served

from stn_serve.cli import main
from stn_serve.poses import Box, pose, source_quad
from stn_serve.predict import table
from stn_serve.prediction import Prediction, Transform

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `stn predict` and return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

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
    white = next(line for line in out.splitlines() if "white.png" in line)
    assert white.split() == ["white.png", "bright", "99.3%", "+0.0°", "0.50", "0.50", "25,", "10", "0%"]
    assert "black.png  dark" in out
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_is_cut_off_in_80_columns(run: Run, tmp_path: Path, vision_server: Served) -> None:
    long = tmp_path / f"{'a very long name ' * 4}[2].png"
    Image.new("L", (4000, 3000), 255).save(long)
    code, out, _ = run(long, "--url", vision_server.grpc, "--top-k", 3)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    first = "".join(line[:25].split("  ")[0].strip() for line in out.splitlines() if not line.strip().startswith("─"))
    assert long.name.replace(" ", "") in first.replace(" ", "")
    assert "2500, 1500" in out
    assert "…" not in out


def test_names_stand_where_there_are_several_transformers() -> None:
    box = Box(0, 0, 8, 8)
    theta = np.eye(2, 3)
    transforms = tuple(
        Transform(
            name=name,
            kind="affine",
            place="image",
            theta=theta,
            quad=source_quad(theta, box) if name == "head" else np.zeros((0, 2)),
            outline=np.zeros((0, 2)),
            pose=pose(theta, box),
            output_size=(4, 4),
        )
        for name in ("head", "body")
    )
    prediction = Prediction(
        labels=("owl",),
        probabilities=(1.0,),
        transforms=transforms,
        image_size=(8, 8),
        input_box=box,
        model_name="birds",
        model_version="1",
    )
    console = Console(width=80, record=True, file=StringIO())
    console.print(table([(Path("owl.png"), prediction)]))
    *_, head, body = (line.split() for line in console.export_text().splitlines() if line.strip())
    assert head == ["owl.png", "owl", "100.0%", "head", "+0.0°", "1.00", "1.00", "4,", "4", "0%"]
    assert body == ["body", "-", "-", "nowhere", "-"]


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
