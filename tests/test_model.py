from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import (
    DIGITS,
    HALF_SIZE,
    IDENT_CONFIG,
    VISION_CONFIG,
    VISION_METADATA,
    build,
    metadata_parameter,
    publish,
    publish_ident,
    publish_vision,
    vision,
)

from stn_serve.errors import ConfigurationError, ModelFailure
from stn_serve.model import Model
from stn_serve.repository import read_config
from stn_serve.warmup import warm_up


def load(directory: Path) -> Model:
    return Model.load(directory, 1, read_config(directory))


def test_a_model_shows_its_signature_and_metadata(tmp_path: Path) -> None:
    model = load(publish_vision(tmp_path))
    assert (model.name, model.version, model.max_batch_size) == ("vision", 1, 4)
    assert [(spec.name, spec.datatype, spec.shape) for spec in model.inputs] == [("image", "UINT8", (-1, 8, 8, 1))]
    assert [spec.name for spec in model.outputs] == ["logits", "theta"]
    assert model.metadata == VISION_METADATA
    assert model.labels == ("dark", "medium", "bright")


def test_run_computes_all_outputs_or_those_asked_for(tmp_path: Path) -> None:
    model = load(publish_vision(tmp_path))
    image = np.full((2, 8, 8, 1), 255, np.uint8)
    outputs = model.run({"image": image})
    assert outputs["logits"].argmax(1).tolist() == [2, 2]
    np.testing.assert_array_equal(outputs["theta"], np.repeat(HALF_SIZE, 2, 0))
    assert set(model.run({"image": image}, ["theta"])) == {"theta"}


def without_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.metadata_props[:]
    return model


def test_a_model_is_asked_in_other_shapes_than_its_graph_has(tmp_path: Path) -> None:
    directory = publish(tmp_path, "vision", without_metadata(vision()), VISION_CONFIG)
    flat = VISION_CONFIG.partition("parameters")[0].replace("[8, 8, 1]", "[64] reshape { shape: [8, 8, 1] }")
    (directory / "config.pbtxt").write_text(flat.replace("dims: [3]", "dims: [3, 1] reshape { shape: [3] }"))
    model = load(directory)
    assert [spec.shape for spec in (*model.inputs, *model.outputs)] == [(-1, 64), (-1, 3, 1), (-1, 1, 2, 3)]
    outputs = model.run({"image": np.full((2, 64), 255, np.uint8)})
    assert outputs["logits"].shape == (2, 3, 1)
    assert outputs["logits"].argmax(1).tolist() == [[2], [2]]


def test_sizes_left_open_stay_what_they_are_in_another_shape(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", 1, "b"]) for name in ("x", "y")]
    model = build([helper.make_node("Neg", ["x"], ["y"])], tensors[:1], tensors[1:])
    config = """input [{ name: "x" data_type: TYPE_FP32 dims: [-1, -1] reshape { shape: [-1, 1, -1] } }]
                output [{ name: "y" data_type: TYPE_FP32 dims: [-1, -1] reshape { shape: [-1, 1, -1] } }]"""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(load(publish(tmp_path, "negative", model, config)).run({"x": x})["y"], -x)


def test_labels_come_from_the_file_without_metadata(tmp_path: Path) -> None:
    model = load(publish_ident(tmp_path))
    assert model.labels == DIGITS
    assert model.metadata is None


def test_a_failing_run_names_the_model(tmp_path: Path) -> None:
    model = load(publish_ident(tmp_path))
    with pytest.raises(ModelFailure, match=r"model 'ident' version 1 failed: .*image"):
        model.run({"image": np.zeros((1, 1, 28, 27), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.replace("TYPE_UINT8", "TYPE_FP32"), r"input 'image' is FP32 in config.pbtxt, but tensor\(uint8\)"),
        (lambda c: c.replace("[8, 8, 1]", "[9, 8, 1]"), r"shape \[-1, 9, 8, 1\] .*, but \['batch', 8, 8, 1\]"),
        (lambda c: c.replace("max_batch_size: 4", "max_batch_size: 0"), r"shape \[8, 8, 1\] in config.pbtxt, but"),
        (
            lambda c: c.replace('"image"', '"picture"'),
            "input 'picture' of config.pbtxt is not in",
        ),
        (lambda c: c.replace('"theta"', '"pose"'), "output 'pose' of config.pbtxt is not .*'logits', 'theta'"),
        (
            lambda c: c.replace("[8, 8, 1]", "[8, 8, 1] reshape { shape: [64] }"),
            r"shape \[-1, 64\] .*, but \['batch', 8",
        ),
        (lambda c: c.replace("KIND_CPU", "KIND_MODEL"), "instance_group has KIND_MODEL, expected one of"),
        (
            lambda c: c + 'parameters { key: "intra_op_thread_count" value: { string_value: "two" } }',
            "parameter intra_op_thread_count is 'two', expected a number",
        ),
        (
            lambda c: c.replace("dims: [3]", 'dims: [3] label_filename: "nope.txt"'),
            "labels cannot be read from .*nope.txt",
        ),
    ],
)
def test_a_config_that_contradicts_the_graph_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    directory = publish_vision(tmp_path)
    (directory / "config.pbtxt").write_text(change(VISION_CONFIG))
    with pytest.raises(ConfigurationError, match=message):
        load(directory)


def test_metadata_that_contradicts_the_graph_is_refused(tmp_path: Path) -> None:
    model = vision()
    helper.set_model_props(model, {"stn": VISION_METADATA.to_json().replace('["dark",', "[")})
    with pytest.raises(ConfigurationError, match=r"metadata counts \[2\], but 'logits' has dims \[3\]"):
        load(publish(tmp_path, "vision", model, VISION_CONFIG))


def test_the_configuration_may_repeat_the_metadata_but_not_contradict_it(tmp_path: Path) -> None:
    assert load(publish(tmp_path, "same", vision(), VISION_CONFIG)).metadata == VISION_METADATA
    other = VISION_CONFIG + metadata_parameter(VISION_METADATA.to_json().replace("dark", "black"))
    with pytest.raises(ConfigurationError, match=r"parameter 'stn' of config.pbtxt is not the metadata of the ONNX"):
        load(publish(tmp_path, "other", vision(), other))
    broken = VISION_CONFIG + metadata_parameter("{")
    with pytest.raises(ConfigurationError, match="model 'broken': metadata 'stn' is not a JSON object"):
        load(publish(tmp_path, "broken", vision(), broken))


def test_a_graph_without_metadata_may_have_it_in_its_configuration(tmp_path: Path) -> None:
    bare = vision()
    del bare.metadata_props[:]
    assert load(publish(tmp_path, "bare", bare, VISION_CONFIG)).metadata == VISION_METADATA


def test_broken_metadata_and_files_are_refused(tmp_path: Path) -> None:
    model = vision()
    helper.set_model_props(model, {"stn": "{"})
    with pytest.raises(ConfigurationError, match="model 'broken': metadata 'stn' is not a JSON object"):
        load(publish(tmp_path, "broken", model, VISION_CONFIG))
    directory = publish_vision(tmp_path, "truncated")
    path = directory / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ConfigurationError, match=r"model.onnx cannot be loaded"):
        load(directory)
    path.unlink()
    with pytest.raises(ConfigurationError, match="model 'truncated' version 1 has no file"):
        load(directory)


def test_an_input_the_config_forgets_is_refused(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("a", "b", "sum")]
    model = build([helper.make_node("Add", ["a", "b"], ["sum"])], tensors[:2], tensors[2:])
    config = """max_batch_size: 2 input [{ name: "a" data_type: TYPE_FP32 dims: [2] }]
                output [{ name: "sum" data_type: TYPE_FP32 dims: [2] }]"""
    with pytest.raises(ConfigurationError, match=r"config.pbtxt lacks input 'b'"):
        load(publish(tmp_path, "adder", model, config))


def test_a_gpu_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = publish_ident(tmp_path, config=IDENT_CONFIG.replace("KIND_CPU", "KIND_GPU gpus: [63]"))
    with pytest.raises(ConfigurationError, match=r"asks for GPU 63, but this machine has \d+ GPUs"):
        load(directory)


WARMUP = """model_warmup [{{ name: "first" batch_size: 4 count: 2
  inputs {{ key: "{name}" value {{ data_type: TYPE_UINT8 dims: {dims} {source} }} }} }}]"""


@pytest.mark.parametrize("source", ["zero_data: true", "random_data: true", 'input_data_file: "row"'])
def test_warmup_runs_the_model(tmp_path: Path, source: str) -> None:
    directory = publish_vision(tmp_path)
    (directory / "warmup").mkdir()
    (directory / "warmup" / "row").write_bytes(bytes(128))
    (directory / "config.pbtxt").write_text(
        VISION_CONFIG + WARMUP.format(name="image", dims="[8, 8, 1]", source=source)
    )
    warm_up(load(directory), directory)


@pytest.mark.parametrize(
    ("name", "dims", "source", "message"),
    [
        ("picture", "[8, 8, 1]", "zero_data: true", "'first' lacks input 'image': name the model's inputs: image"),
        ("image", "[9, 8, 1]", "zero_data: true", r"input 'image' is TYPE_UINT8 \[9, 8, 1\], the model's is"),
        ("image", "[-1, 8, 1]", "zero_data: true", r"input 'image' is TYPE_UINT8 \[-1, 8, 1\], the model's is"),
        ("image", "[8, 8, 1]", 'input_data_file: "row"', "row cannot be read: No such file"),
        ("image", "[8, 8, 1]", 'input_data_file: "short"', "short: cannot reshape array of size 63"),
    ],
)
def test_a_warmup_that_cannot_run_is_refused(tmp_path: Path, name: str, dims: str, source: str, message: str) -> None:
    directory = publish_vision(tmp_path)
    (directory / "warmup").mkdir()
    (directory / "warmup" / "short").write_bytes(bytes(63))
    (directory / "config.pbtxt").write_text(VISION_CONFIG + WARMUP.format(name=name, dims=dims, source=source))
    with pytest.raises(ConfigurationError, match=message):
        warm_up(load(directory), directory)


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory = publish_ident(tmp_path, config=IDENT_CONFIG.replace("KIND_CPU", "KIND_AUTO"))
    load(directory)
    assert capfd.readouterr() == ("", "")


def test_the_test_models_are_valid_onnx(tmp_path: Path) -> None:
    onnx.checker.check_model(onnx.load(publish_ident(tmp_path) / "1" / "model.onnx"), full_check=True)
    onnx.checker.check_model(onnx.load(publish_vision(tmp_path) / "1" / "model.onnx"), full_check=True)
