from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from export.parity import TOLERANCES, ParityError, Precision
from export.publishing import AccuracyError, export_checkpoint
from export.repository import PublishError
from export.targets import Target, TargetError
from stn_serve.cli import main
from stn_serve.registry import ModelRegistry
from training.checkpoint import Checkpoint, build_network, save_checkpoint
from training.config import recipe_from_fields

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small network that has learned nothing yet."""
    recipe = recipe_from_fields(
        {
            "name": "small",
            "seed": 3,
            "data": {"source": "scikit-learn", "distortion": {"canvas": 30, "rotation_degrees": 45, "translate": True}},
            "model": {"classifier": "fcn", "width": 8, "transform": "affine", "head_std": 0.1},
        }
    )
    torch.manual_seed(0)
    trained = Checkpoint(
        recipe=recipe,
        labels=DIGITS,
        input_size=(1, 30, 30),
        epoch=2,
        model=build_network(recipe, (1, 30, 30), 10).state_dict(),
        optimizer={},
        data_source="scikit-learn digits",
        data_sha256="ab" * 32,
        metrics={"error_percent": 90.0},
    )
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    save_checkpoint(trained, path)
    return path


def test_export_says_what_it_does(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    repository = tmp_path / "made" / "repository"
    run(monkeypatch, str(checkpoint), "--repository", str(repository), "--name", "digits", "--max-batch-size", "9")
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "recipe 'small', epoch 2" in output
    assert all(check in output for check in ("real", "noise", "half_pixel", "far", "out_of_range", "non_finite"))
    assert "failed" not in output
    table = output[output.index("Parity with PyTorch") : output.index("Published")].splitlines()
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table if line.rstrip().endswith("ok")] == [
        *(2 * ["real"] + 2 * ["noise"] + 2 * ["half_pixel"] + 2 * ["far"] + 2 * ["out_of_range"] + 2 * ["non_finite"])
    ]
    assert f"Published {repository / 'digits' / '1'}." in output
    assert f"stn serve --model-repository {repository}" in output
    assert ModelRegistry.load(repository).find("digits").model.labels == DIGITS


def test_provenance_and_parity_lie_beside_the_model(checkpoint: Path, tmp_path: Path) -> None:
    published = export_checkpoint(checkpoint, tmp_path, "digits", max_batch_size=3)
    assert (published.path, published.version) == (tmp_path / "digits" / "1", 1)
    assert sorted(path.name for path in published.path.iterdir()) == [
        "model.onnx",
        "parity.json",
        "parity.png",
        "provenance.json",
    ]
    assert json.loads((published.path / "parity.json").read_text()) == json.loads(published.parity.to_json())
    provenance = json.loads((published.path / "provenance.json").read_text())
    assert provenance["recipe"]["name"] == "small"
    assert provenance["seed"] == 3
    assert provenance["data"] == {"source": "scikit-learn digits", "sha256": "ab" * 32}
    assert provenance["metrics"] == {"error_percent": 90.0}
    assert provenance["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(provenance)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_is_published_with_what_it_costs(checkpoint: Path, tmp_path: Path, precision: Precision) -> None:
    page = StringIO()
    console = Console(file=page, width=80)
    published = export_checkpoint(
        checkpoint, tmp_path, "digits", max_batch_size=16, precision=precision, console=console
    )
    exported = json.loads((published.path / "provenance.json").read_text())["export"]
    assert (exported["precision"], exported["target"]) == (precision, "cpu")
    measured = exported["measurement"]
    assert measured["images"] > 300
    assert measured["fp32_accuracy_percent"] - measured["accuracy_percent"] <= TOLERANCES[precision].accuracy_points
    assert measured["theta_max_error"] <= (0 if precision == "int8" else 1e-2)
    assert [speed["batch"] for speed in measured["speed"]] == [1, 16]
    assert (exported["quantization"] is not None) == (precision == "int8")
    assert f"{precision}      fp32" in page.getvalue()
    assert max(map(len, page.getvalue().splitlines())) <= 80


def test_a_precision_that_costs_too_much_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against a limit that no precision can keep."""
    monkeypatch.setitem(TOLERANCES, "fp16", replace(TOLERANCES["fp16"], accuracy_points=-1))
    with pytest.raises(AccuracyError, match=r"fp16 is right on .* % of \d+ images, fp32 on .* %: -1 points less"):
        export_checkpoint(checkpoint, tmp_path, "digits", max_batch_size=2, precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_a_model_for_another_engine_needs_another_name(checkpoint: Path, tmp_path: Path) -> None:
    export_checkpoint(checkpoint, tmp_path, "digits", max_batch_size=2, target=Target("cuda"))
    config = tmp_path / "digits" / "config.pbtxt"
    assert "KIND_GPU" in config.read_text()
    with pytest.raises(PublishError, match=r"runs on cuda, and the new version is for cpu; use another name"):
        export_checkpoint(checkpoint, tmp_path, "digits", target=Target("cpu"))
    with pytest.raises(TargetError, match="no integer convolutions for CUDA"):
        export_checkpoint(checkpoint, tmp_path, "digits", precision="int8")


def test_what_fails_the_proof_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against a tolerance that no runtime can keep."""
    tolerance = replace(TOLERANCES["fp32"], error=0.0)
    monkeypatch.setitem(TOLERANCES, "fp32", tolerance)
    page = StringIO()
    with pytest.raises(ParityError, match=r"real \(batch \d\): logits is off by .*, 0 allowed"):
        export_checkpoint(checkpoint, tmp_path, "digits", max_batch_size=2, console=Console(file=page, width=100))
    assert "failed" in page.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_what_a_user_can_mend_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noise.pt").write_bytes(b"noise")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    (tmp_path / "models" / "digits" / "1").mkdir(parents=True)
    (tmp_path / "file").touch()
    cases: list[tuple[str | Path, list[str], str]] = [
        ("missing.pt", [], "there is no checkpoint"),
        ("noise.pt", [], "is not a checkpoint"),
        ("foreign.pt", [], "is not a checkpoint of stn-serve"),
        (checkpoint, ["--name", "a/b"], "name: expected letters"),
        (checkpoint, ["--version", "1"], "version 1 of 'digits' exists, and is never overwritten; 2 is free"),
        (checkpoint, ["--precision", "bf16"], "precision: expected one of fp32, fp16, fp16-weights, int8, got"),
        (checkpoint, ["--target", "tpu"], "target: expected one of cpu, cuda, tensorrt, got 'tpu'"),
        (checkpoint, ["--target", "cuda", "--triton", "24.04"], "would run on the CPU"),
        (checkpoint, ["--version", "0"], "version: expected a number of at least 1, got 0"),
        (checkpoint, ["--repository", str(tmp_path / "file")], "is not a directory"),
    ]
    for path, options, message in cases:
        arguments = [str(tmp_path / path), "--repository", str(tmp_path / "models"), "--name", "digits", *options]
        with pytest.raises(SystemExit) as caught:
            run(monkeypatch, *arguments)
        assert caught.value.code == 2
        errors = capsys.readouterr().err
        assert errors.startswith("stn: error: ")
        assert errors.count("\n") == 1
        assert message in errors
    assert sorted(tmp_path.glob("models/*/*")) == [tmp_path / "models" / "digits" / "1"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`stn export`, in this process."""
    monkeypatch.setattr(sys, "argv", ["stn", "export", *arguments])
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
