from __future__ import annotations

from pathlib import Path

import pytest
from onnx_models import IDENT_CONFIG, publish_ident

from stn_serve.errors import ConfigurationError
from stn_serve.registry import ModelRegistry
from stn_serve.repository import model_directories, read_config, served_versions


def write_config(directory: Path, config: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.pbtxt").write_text(config)
    return directory


def test_defaults_are_tritons(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path / "m", "max_batch_size: 8"))
    assert (config.name, config.backend, config.platform) == ("m", "onnxruntime", "onnxruntime_onnx")
    assert config.default_model_filename == "model.onnx"
    assert config.version_policy.latest.num_versions == 1
    assert [(group.name, group.count) for group in config.instance_group] == [("m_0", 1)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("max_batch: 1", r"model 'm': config.pbtxt cannot be read: 1:1 : .*no field named \"max_batch\""),
        ('name: "other"', "directory name must equal model name, which config.pbtxt says is 'other'"),
        ('backend: "python"', "model 'm': backend 'python' is not supported"),
        ('platform: "tensorrt_plan"', "model 'm': backend 'tensorrt_plan' is not supported"),
        ("max_batch_size: -1", "max_batch_size is -1, expected >= 0"),
        ("sequence_batching { }", "sequence_batching is not supported"),
        ("ensemble_scheduling { }", "ensemble_scheduling is not supported"),
        (
            "model_transaction_policy { decoupled: true }",
            "model_transaction_policy.decoupled is not supported: a request",
        ),
        ('input [{ name: "a" optional: true }]', "input.optional is not supported: every input must come"),
        ('model_operations { op_library_filename: ["x.so"] }', "model_operations is not supported: libraries"),
        ("instance_group [{ kind: KIND_CPU gpus: [0] }]", r"kind KIND_CPU but specifies GPUs \[0\]"),
        ("instance_group [{ count: -1 }]", "count -1, expected >= 1"),
        (
            'input [{ name: "a" data_type: TYPE_FP32 dims: [2] reshape { shape: [3] } }]',
            r"dims \[2\], but reshape \[3\]",
        ),
        ('input [{ name: "a" data_type: TYPE_FP32 dims: [2] format: FORMAT_NHWC }]', "FORMAT_NHWC, but not 3 dims"),
        ('input [{ name: "a" data_type: TYPE_FP32 }]', "input 'a' must specify dims"),
    ],
)
def test_a_config_that_cannot_be_honoured_is_refused(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_config(write_config(tmp_path / "m", config))


def test_what_has_no_effect_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = """response_cache { enable: true } optimization { cuda { graphs: true } priority: PRIORITY_MAX }
                parameters { key: "intra_op_thread_count" value { string_value: "1" } }
                parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }"""
    read_config(write_config(tmp_path / "m", config))
    [message] = caplog.messages
    assert message.startswith("model 'm': config.pbtxt has no effect here: ")
    for name in ("response_cache (", "optimization.cuda (", "optimization.priority (", "FORCE_CPU_ONLY_INPUT_TENSORS"):
        assert name in message
    assert "intra_op_thread_count" not in message


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", [10]),
        ("version_policy { latest { num_versions: 2 } }", [3, 10]),
        ("version_policy { all { } }", [1, 3, 10]),
        ("version_policy { specific { versions: [1, 3, 7] } }", [1, 3]),
    ],
)
def test_the_policy_chooses_versions(tmp_path: Path, policy: str, versions: list[int]) -> None:
    directory = write_config(tmp_path / "m", policy)
    for name in ("1", "3", "10", "04", "0", "x", "warmup"):
        (directory / name).mkdir()
    assert served_versions(directory, read_config(directory)) == versions


def test_without_a_version_there_is_nothing_to_serve(tmp_path: Path) -> None:
    directory = write_config(tmp_path / "m", "version_policy { specific { versions: [2] } }")
    (directory / "1").mkdir()
    with pytest.raises(ConfigurationError, match=r"at least one version must be available .* of model 'm'"):
        served_versions(directory, read_config(directory))


def test_hidden_directories_and_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "m").mkdir()
    assert model_directories(tmp_path) == [tmp_path / "m"]


def test_a_broken_version_does_not_hinder_the_others(tmp_path: Path) -> None:
    directory = publish_ident(tmp_path, config=IDENT_CONFIG + "version_policy { all { } }")
    (directory / "2").mkdir()
    (directory / "2" / "model.onnx").write_bytes(b"no model")
    registry = ModelRegistry.load(tmp_path)
    assert registry.find("ident").model.version == 1
    assert [(entry.version, entry.served is not None) for entry in registry.index] == [(1, True), (2, False)]
    assert "model.onnx cannot be loaded" in registry.index[1].reason
