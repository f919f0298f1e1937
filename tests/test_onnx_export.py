from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_networks import LABELS, NETWORKS, SIZE, Exported, SmallNetwork, export, exported, node, noise, set_attribute
from torch import Tensor

from export.description import ExportError, describe
from export.graph_contract import GraphError, SamplerAttributes
from export.onnx_export import export_onnx
from stn_serve.metadata import METADATA_KEY, ControlGrid, ModelMetadata
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import Affine, Attention


@pytest.fixture(scope="module")
def affine() -> Exported:
    return exported("affine")


def test_the_face_is_the_design_s(affine: Exported) -> None:
    model = affine.model
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version == 8, "what ONNX Runtime 1.14 and later load"
    faces = {value.name: shape(value) for value in (*model.graph.input, *model.graph.output)}
    assert faces == {
        "image": (TensorProto.UINT8, ["batch", 14, 12, 1]),
        "logits": (TensorProto.FLOAT, ["batch", 3]),
        "theta": (TensorProto.FLOAT, ["batch", 1, 2, 3]),
    }


def test_the_metadata_says_what_the_network_is(affine: Exported) -> None:
    document = next(prop.value for prop in affine.model.metadata_props if prop.key == METADATA_KEY)
    metadata = ModelMetadata.from_json(document)
    assert metadata == affine.contract.metadata
    assert (metadata.task, metadata.labels, metadata.transform) == ("classification", LABELS, "affine")
    assert (metadata.input.height, metadata.input.width, metadata.input.color) == (14, 12, "gray")
    look = metadata.transformers[0]
    assert (look.name, look.place, look.output_size) == ("look", "image", SIZE)


def test_the_graph_holds_nothing_needless(affine: Exported) -> None:
    operators = [node.op_type for node in affine.model.graph.node]
    assert not {"Transpose", "Expand", "Concat", "Slice", "BatchNormalization", "Identity"} & set(operators)
    assert operators.count("Cast") == 1, "the image"
    assert operators.count("MatMul") == 2, "the grid"


def test_weights_have_the_checkpoint_s_names_and_are_stored_once(affine: Exported) -> None:
    stored = {tensor.name: tensor for tensor in affine.model.graph.initializer}
    for name, value in affine.network.state_dict().items():
        np.testing.assert_array_equal(numpy_helper.to_array(stored[name]), value.numpy())
    learned = sum(parameter.numel() for parameter in affine.network.parameters())
    lines_of_the_grid = 6 * 4 * SIZE[1] + 2 * SIZE[0]
    assert sum(np.prod(tensor.dims) for tensor in stored.values()) < learned + lines_of_the_grid + 40


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(affine: Exported) -> None:
    content = affine.model.SerializeToString()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b".py" not in content


def test_export_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(SmallNetwork(None))
    assert capfd.readouterr() == ("", "")
    assert caught == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_computes_what_torch_does(name: str) -> None:
    network, model = exported(name).network, exported(name).model
    assert "AffineGrid" not in {node.op_type for node in model.graph.node}
    images = noise(7, network.input_size)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        answer = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    expected = [output for output in answer if output is not None]
    for served, reference in zip(session.run(None, {"image": images}), expected, strict=True):
        np.testing.assert_allclose(served, reference.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mode", "padding", "output_size"),
    [
        ("affine", "bilinear", "border", SIZE),
        ("nearest", "nearest", "border", SIZE),
        ("bicubic", "bicubic", "reflection", SIZE),
        ("supersampled", "bilinear", "zeros", (SIZE[0] // 2, SIZE[1] // 2)),
    ],
)
def test_kernels_and_paddings_are_promised(name: str, mode: str, padding: str, output_size: tuple[int, int]) -> None:
    contract = exported(name).contract
    assert contract.samplers == {SamplerAttributes(mode=mode, padding=padding)}
    assert contract.metadata.transformers[0].output_size == output_size


def test_the_spline_s_control_grid_is_described() -> None:
    assert exported("thin_plate_spline").contract.metadata.control_grid == ControlGrid(size=3, regularization=0.1)
    assert exported("affine").contract.metadata.control_grid is None


def test_volumes_take_opset_20_and_its_spelling() -> None:
    model = exported("affine_3d").model
    assert model.opset_import[0].version == 20
    assert model.ir_version == 9
    attributes = {
        attribute.name: helper.get_attribute_value(attribute) for attribute in node(model, "GridSample").attribute
    }
    assert attributes["mode"] == b"linear"


def test_colour_images_are_laid_out_while_they_are_bytes() -> None:
    assert exported("colour").contract.metadata.input.color == "rgb"
    assert [node.op_type for node in exported("colour").model.graph.node[:2]] == ["Transpose", "Cast"]


def test_a_network_without_transformers_has_no_theta() -> None:
    assert [output.name for output in exported("none").model.graph.output] == ["logits"]
    assert exported("none").contract.metadata.transform is None


def test_sequences_and_parallel_transformers() -> None:
    model, contract = exported("sequence").model, exported("sequence").contract
    assert contract.outputs == {"logits": (2, 3), "theta": (2, 2, 3)}
    assert contract.metadata.task == "sequence"
    assert [transformer.name for transformer in contract.metadata.transformers] == ["left", "right"]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}, "folded"


class Odd(SmallNetwork):
    """Names one transformer more than theta holds."""

    def transformers(self) -> list[PlacedTransformer]:
        return 2 * super().transformers()


class Mixed(Network):
    input_size = (1, 14, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first = SmallNetwork(Affine(SIZE))
        self.second = SmallNetwork(Attention(SIZE))

    def forward(self, images: Tensor) -> Answer:
        answers = [self.first(images), self.second(images)]
        return Answer(answers[0].logits, torch.cat([answer.theta for answer in answers], dim=1))

    def transformers(self) -> list[PlacedTransformer]:
        return [*self.first.transformers(), *self.second.transformers()]


@pytest.mark.parametrize(
    ("network", "labels", "message"),
    [
        (SmallNetwork(None, input_size=(2, 8, 8)), LABELS, "takes 2 channels, expected 1"),
        (SmallNetwork(None), LABELS[:2], r"logits have shape \[2, 3\], expected \[N, 2\]"),
        (Odd(Affine(SIZE)), LABELS, "theta is of 1 transformers, but the network names 2"),
        (Mixed(), LABELS, "of one kind, these are affine, attention"),
    ],
    ids=["channels", "labels", "transformers", "kinds"],
)
def test_what_the_contract_does_not_know_is_refused(
    network: Network, labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(network, labels, tmp_path / "model.onnx")


def to_opset_20(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.version_converter.convert_version(model, 20)


def to_nearest(model: onnx.ModelProto) -> onnx.ModelProto:
    set_attribute(node(model, "GridSample"), "mode", "nearest")
    return model


def to_aligned_corners(model: onnx.ModelProto) -> onnx.ModelProto:
    set_attribute(node(model, "GridSample"), "align_corners", 1)
    return model


def to_half_grid(model: onnx.ModelProto) -> onnx.ModelProto:
    sample = node(model, "GridSample")
    cast = helper.make_node("Cast", [sample.input[1]], ["half_grid"], to=TensorProto.FLOAT16)
    sample.input[1] = "half_grid"
    model.graph.node.insert(list(model.graph.node).index(sample), cast)
    return model


def to_affine_grid(model: onnx.ModelProto) -> onnx.ModelProto:
    node(model, "MatMul").op_type = "AffineGrid"
    return model


def to_custom_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    node(model, "Relu").domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def to_newest_ir(model: onnx.ModelProto) -> onnx.ModelProto:
    model.ir_version = 11
    return model


def to_frozen_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    return model


def to_renamed_theta(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[1].name = "transform"
    return model


def to_unused_weight(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "left_over"))
    return model


def to_no_metadata(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.metadata_props[:]
    return model


@pytest.mark.parametrize(
    ("damage", "check", "found"),
    [
        (to_opset_20, "opset", "20"),
        (to_opset_20, "samplers", "linear"),
        (to_nearest, "samplers", "nearest"),
        (to_aligned_corners, "samplers", "align_corners=True"),
        (to_half_grid, "grids", "FLOAT16"),
        (to_affine_grid, "operators", "AffineGrid, which runs on the CPU under CUDA"),
        (to_custom_operator, "operators", "Relu of domain 'com.example'"),
        (to_custom_operator, "opset", "com.example"),
        (to_newest_ir, "ir_version", "11"),
        (to_frozen_batch, "input", "2, 14, 12, 1"),
        (to_renamed_theta, "outputs", "transform"),
        (to_unused_weight, "initializers", "left_over"),
        (to_no_metadata, "metadata", "None"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_graph_that_breaks_the_contract_is_named(
    affine: Exported, damage: Callable[[onnx.ModelProto], onnx.ModelProto], check: str, found: str
) -> None:
    affine.contract.check(affine.copy())
    with pytest.raises(GraphError) as caught:
        affine.contract.check(damage(affine.copy()))
    assert check in caught.value.checks
    assert found in str(caught.value)


def test_describe_leaves_the_network_alone() -> None:
    network = SmallNetwork(Affine(SIZE))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    describe(network, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def shape(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
