from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from onnx_models import IDENT_CONFIG, VISION_CONFIG, ident, publish, publish_ident, publish_vision

from stn_serve.cli import main
from stn_serve.repository_check import check_repository

WARMUP = 'model_warmup [{ name: "w" batch_size: 1 inputs { key: "image" value { %s } } }]'
FITTING = "data_type: TYPE_UINT8 dims: [8, 8, 1] random_data: true"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_vision(tmp_path)
    (tmp_path / "vision" / "labels.txt").write_text("dark\nmedium\nbright\n")
    return tmp_path


def test_a_sound_repository_has_no_findings(repository: Path) -> None:
    assert check_repository(repository) == []


CASES: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace("max_batch_size: 4", "max_batch: 4"), 'no field named "max_batch"'),
    (lambda text: f'name: "other" {text}', "directory name must equal model name, which config.pbtxt says is 'other'"),
    (lambda text: text.replace("onnxruntime", "tensorflow"), "backend 'tensorflow' is not supported"),
    (lambda text: text.replace("size: 4", "size: -4"), "max_batch_size is -4, expected >= 0"),
    (
        lambda text: text.replace("dynamic_batching { }", "dynamic_batching { preferred_batch_size: [2, 8] }"),
        "preferred size must be <= max batch size: 8 > 4",
    ),
    (
        lambda text: text.replace("dynamic_batching { }", "dynamic_batching { preferred_batch_size: 0 }"),
        "preferred size must be positive, is 0",
    ),
    (
        lambda text: text.replace("dynamic_batching { }", "dynamic_batching { priority_levels: 2 }"),
        "default priority level must be in range [1, 2], is 0",
    ),
    (
        lambda text: text.replace(
            "dynamic_batching { }", "dynamic_batching { priority_queue_policy { key: 3 value { max_queue_size: 2 } } }"
        ),
        "priority_queue_policy names level 3",
    ),
    (lambda text: text.replace("KIND_CPU count: 1", "KIND_CPU gpus: 0"), "KIND_CPU but specifies GPUs [0]"),
    (lambda text: text.replace("KIND_CPU count: 1", "KIND_CPU count: -1"), "has count -1"),
    (lambda text: text + "version_policy { specific { versions: 7 } }", "at least one version must be available"),
    (lambda text: text.replace("dims: [8, 8, 1]", "dims: [8, 0, 1]"), "dims [8, 0, 1], expected sizes >= 1"),
    (lambda text: text.replace("dims: [8, 8, 1]", ""), "input 'image' must specify dims"),
    (lambda text: text.replace("data_type: TYPE_UINT8", ""), "input 'image' must specify data_type"),
    (lambda text: text.replace('name: "theta"', 'name: "logits"'), "output 'logits' is declared more than once"),
    (lambda text: text.replace('name: "image"', ""), "an input has no name"),
    (
        lambda text: text.replace('name: "image"', 'name: "picture"'),
        "input 'picture' of config.pbtxt is not in the ONNX",
    ),
    (lambda text: text.replace("dims: [3]", "dims: [4]"), "has shape [-1, 4] in config.pbtxt"),
    (
        lambda text: text.replace("dims: [3]", 'dims: [3] label_filename: "names.txt"'),
        "labels cannot be read from names.txt: FileNotFoundError",
    ),
    (
        lambda text: text.replace("dims: [3]", 'dims: [3] label_filename: "two.txt"'),
        "output 'logits' has 3 classes, but two.txt has 2 labels",
    ),
    (
        lambda text: text + WARMUP.replace("batch_size: 1", "batch_size: 9") % FITTING,
        "has batch_size 9, max_batch_size",
    ),
    (lambda text: text + WARMUP.replace("image", "picture") % FITTING, "names an input 'picture'"),
    (lambda text: text + WARMUP.replace("image", "picture") % FITTING, "lacks input 'image'"),
    (
        lambda text: text + WARMUP % FITTING.replace("UINT8", "FP32"),
        "is TYPE_FP32 [8, 8, 1], the model's is TYPE_UINT8",
    ),
    (lambda text: text + WARMUP % FITTING.replace("8, 8, 1", "8, 8"), "is TYPE_UINT8 [8, 8], the model's"),
    (
        lambda text: text + WARMUP % FITTING.replace("random_data: true", 'input_data_file: "gone"'),
        "No such file or directory",
    ),
]


@pytest.mark.parametrize(("damage", "problem"), CASES, ids=[problem for _, problem in CASES])
def test_what_is_wrong_is_found(repository: Path, damage: Callable[[str], str], problem: str) -> None:
    (repository / "vision" / "two.txt").write_text("dark\nbright\n")
    (repository / "vision" / "config.pbtxt").write_text(damage(VISION_CONFIG))
    findings = check_repository(repository)
    assert any(finding.severity == "error" and problem in finding.problem for finding in findings), findings
    assert all(finding.remedy for finding in findings)


def test_several_problems_of_several_models(repository: Path) -> None:
    publish_ident(
        repository, config=IDENT_CONFIG.replace("dynamic_batching { }", "dynamic_batching { priority_levels: 2 }")
    )
    (repository / "ident" / "01").mkdir()
    (repository / "empty").mkdir()
    found = {(finding.model, finding.version, finding.severity) for finding in check_repository(repository)}
    assert found == {
        ("empty", None, "error"),
        ("ident", None, "error"),
        ("ident", None, "warning"),
    }
    assert {finding.model for finding in check_repository(repository, "empty")} == {"empty"}


def test_a_damaged_file_is_an_error_of_its_version(repository: Path) -> None:
    (repository / "vision" / "2").mkdir()
    (repository / "vision" / "2" / "model.onnx").write_bytes(b"noise")
    config = repository / "vision" / "config.pbtxt"
    config.write_text(VISION_CONFIG + "version_policy { all { } }")
    assert [(finding.version, finding.severity) for finding in check_repository(repository)] == [(2, "error")]


def test_a_model_for_gpus_can_be_checked_without_one(repository: Path) -> None:
    config = repository / "vision" / "config.pbtxt"
    config.write_text(VISION_CONFIG.replace("KIND_CPU count: 1", "KIND_GPU gpus: 0"))
    assert check_repository(repository) == []


def test_warnings_only(repository: Path) -> None:
    config = """
        input [{ name: "image" data_type: TYPE_FP32 dims: [-1, 1, 28, 28] }]
        output [{ name: "logits" data_type: TYPE_FP32 dims: [-1, 10] }]
        version_policy { specific { versions: [1, 5] } }
        dynamic_batching { }
    """
    publish(repository, "plain", ident(), config)
    problems = [finding.problem for finding in check_repository(repository)]
    assert [problem.split(",")[0] for problem in problems] == [
        "dynamic_batching without max_batch_size batches nothing",
        "version_policy asks for version 5",
        "carries no metadata 'stn': tensors are served",
    ]


def test_check_says_what_and_where_and_exits_with_1(repository: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("check") == (0, "1 models, 0 errors, 0 warnings\n", "")
    config = repository / "vision" / "config.pbtxt"
    config.write_text(VISION_CONFIG.replace("dynamic_batching { }", "dynamic_batching { preferred_batch_size: 8 }"))
    code, output, _ = run("check")
    assert code == 1
    assert "error vision: dynamic batching preferred size must be <= max batch size: 8 > 4" in output
    assert "lower it" in output
    assert output.endswith("1 models, 1 errors, 0 warnings\n")


def test_list(repository: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (repository / "broken").mkdir()
    code, output, _ = run("list")
    assert code == 0
    rows = [line.split() for line in output.splitlines()]
    assert ["vision", "1", "8x8", "gray", "3", "affine", "4"] in rows
    assert ["broken", "broken"] in rows


def test_show(repository: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    parity = {"precision": "fp32", "rows": [{"check": "real", "max_relative": 2e-7}]}
    (repository / "vision" / "1" / "parity.json").write_text(json.dumps(parity))
    (repository / "vision" / "1" / "provenance.json").write_text("[]")
    code, output, _ = run("show", "vision")
    assert code == 0
    for line in (
        "vision version 1, batches of up to 4",
        "image UINT8 [-1, 8, 8, 1]",
        "theta FP32 [-1, 1, 2, 3]",
        "3: dark, medium, bright",
        "look: affine of image, 4x4",
        "fp32, 1 checks, off by 2e-07",
    ):
        assert line in output


def test_remove(repository: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    publish_ident(repository)
    publish_ident(repository, "other")
    (repository / "ident" / "2").mkdir()
    assert run("remove", "ident", "--version", "2", "--yes")[0] == 0
    assert not (repository / "ident" / "2").exists()
    assert run("remove", "ident", "--version", "1", "--yes")[2].strip().endswith("remove the whole model")
    assert run("remove", "ident", "--version", "5", "--yes")[2].strip().endswith("has no version 5")
    assert run("remove", "ident", "--yes")[0] == 0
    assert run("remove", "other")[0] == 1, "nobody has said yes"
    assert sorted(path.name for path in repository.iterdir()) == ["other", "vision"]


def test_unknown_models_and_repositories(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for command in (("show", "nope"), ("check", "nope"), ("remove", "nope", "--yes"), ("remove", "..", "--yes")):
        code, _, errors = run(*command)
        assert code == 2
        assert "has no model" in errors
    assert run("list", "--model-repository", str(tmp_path / "gone"))[0] == 2


def test_none_of_it_needs_torch_or_onnx(repository: Path) -> None:
    program = (
        "import sys; from stn_serve.cli import app; "
        f"app(['models', 'check', '--model-repository', {str(repository)!r}], standalone_mode=False); "
        "print(sorted({'torch', 'onnx', 'training', 'export'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def run(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    def command(*arguments: str) -> tuple[int, str, str]:
        """`stn models` in this process: exit code, stdout, stderr."""
        place = [] if "--model-repository" in arguments else ["--model-repository", str(repository)]
        monkeypatch.setattr(sys, "argv", ["stn", "models", *arguments, *place])
        monkeypatch.setattr(sys, "stdin", StringIO("n\n"))
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        return code, output, errors

    return command
