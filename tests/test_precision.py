from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from small_networks import LABELS, Exported, exported, noise, parity
from torch import Tensor, nn

from export.half_precision import halve
from export.onnx_export import export_onnx
from export.parity import TOLERANCES
from export.quantization import QuantizationError, quantizable, quantize, transformer_nodes
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import Affine, ConvolutionalLocalization, SpatialTransformer

REPOSITORY = Path(__file__).parent.parent / "model_repository"


class ConvolutionalNetwork(Network):
    """A transformer on the image and another on a feature map, between convolutions."""

    input_size = (1, 24, 24)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = SpatialTransformer(
            ConvolutionalLocalization((1, 24, 24), filters=(4,)), Affine((24, 24)), head_std=0.1
        )
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.second = SpatialTransformer(
            ConvolutionalLocalization((8, 24, 24), filters=(4,)), Affine((24, 24)), head_std=0.1
        )
        self.tail = nn.Sequential(
            nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()
        )
        self.classifier = nn.Linear(16 * 81, len(LABELS))
        self.eval()

    def forward(self, images: Tensor) -> Answer:
        warped, outer = self.first(images)
        warped, inner = self.second(torch.relu(self.conv1(warped)))
        return Answer(self.classifier(self.tail(warped)), torch.stack([outer, inner], dim=1))

    def transformers(self) -> list[PlacedTransformer]:
        return [PlacedTransformer("first", "image", self.first), PlacedTransformer("second", "conv1", self.second)]


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    network = ConvolutionalNetwork()
    path = tmp_path_factory.mktemp("convolutional") / "model.onnx"
    contract = export_onnx(network, LABELS, path)
    return Exported(network, onnx.load(path), contract)


@pytest.fixture(scope="module")
def fp32(convolutional: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fp32") / "model.onnx"
    onnx.save(convolutional.model, path)
    return path


def test_float16_halves_the_file_and_keeps_the_proof(convolutional: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(convolutional.network, LABELS, path, half=True)
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith(("weight", "weight_bias"))]
    kinds = {tensor.name: tensor.data_type for tensor in weights}
    assert {name for name, kind in kinds.items() if kind == TensorProto.FLOAT} == {
        "first.head.weight",
        "second.head.weight",
    }
    assert sum(tensor.ByteSize() for tensor in weights) < 0.52 * sum(
        tensor.ByteSize() for tensor in convolutional.model.graph.initializer if tensor.name in kinds
    )
    halved = Exported(convolutional.network, model, convolutional.contract)
    assert parity(halved, tmp_path, precision="fp16").failures == []
    assert parity(halved, tmp_path / "strict", precision="fp32").failures != []


def test_halving_leaves_the_network_alone(convolutional: Exported) -> None:
    halved = halve(convolutional.network)
    assert {parameter.dtype for parameter in convolutional.network.parameters()} == {torch.float32}
    assert halved.get_submodule("first.head").weight.dtype == torch.float32
    assert halved.get_submodule("first.transform").get_buffer("along").dtype == torch.float32
    assert halved.get_submodule("conv1").weight.dtype == torch.float16


def test_all_but_the_transformers_is_quantised(convolutional: Exported) -> None:
    """The first convolution is read from, and feeds the second transformer's localisation network as well."""
    graph = convolutional.model.graph
    weights = {node.name: node.input[1] for node in graph.node if len(node.input) > 1}
    assert [weights[name] for name in quantizable(graph)] == [
        "conv1.weight",
        "tail.0.weight",
        "tail.3.weight",
        "classifier.weight",
    ]


@pytest.mark.parametrize("name", ["digits", "house_numbers"])
def test_int8_keeps_the_theta_of_what_looks_at_the_image(name: str, tmp_path: Path) -> None:
    """The shipped models: one transformer, and four in series that look at crops of the image."""
    source, target = REPOSITORY / name / "1" / "model.onnx", tmp_path / "model.onnx"
    height, width, channels = (entry.dim_value for entry in input_shape(onnx.load(source))[1:])
    images = noise(9, (channels, height, width))
    assert quantize(source, target, images, judge=lambda _: 50.0, allowed_points=0.1).left_out == ()
    plain, quantised = (answer(file, images) for file in (source, target))
    np.testing.assert_array_equal(quantised[1], plain[1])
    assert np.abs(quantised[0] - plain[0]).max() > 0


def test_int8_moves_theta_only_where_it_looks_at_quantised_features(
    convolutional: Exported, fp32: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    result = quantize(fp32, path, noise(32, (1, 24, 24)), judge=lambda _: 50.0, allowed_points=0.1)
    assert len(result.quantized) == 4
    assert result.left_out == ()
    convolutional.contract.check(onnx.load(path))
    images = noise(9, (1, 24, 24))
    plain, quantised = (answer(file, images) for file in (fp32, path))
    np.testing.assert_array_equal(quantised[1][:, 0], plain[1][:, 0])
    assert 0 < np.abs(quantised[1][:, 1] - plain[1][:, 1]).max() < TOLERANCES["int8"].led_theta_error
    assert 0 < np.abs(quantised[0] - plain[0]).max() < 0.1
    of = Exported(convolutional.network, onnx.load(path), convolutional.contract)
    assert parity(of, tmp_path, precision="int8").failures == []
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in of.model.graph.initializer}
    assert {stored[name].dtype for name in stored if name.startswith("tail.0.weight_quantized")} == {np.dtype(np.int8)}
    assert all(abs(int(stored[name].min())) <= 64 for name in stored if name.endswith("weight_quantized"))


def test_the_most_harmful_layer_is_left_out_first(fp32: Path, tmp_path: Path) -> None:
    """A judge for whom the second convolution spoils everything and the first a little."""
    harmful = {"tail.3.weight": 30.0, "tail.0.weight": 1.0}

    def judge(file: Path) -> float:
        names = {tensor.name for tensor in onnx.load(file).graph.initializer}
        return 90.0 - sum(points for name, points in harmful.items() if f"{name}_quantized" in names)

    calibration = noise(8, (1, 24, 24))
    weights = {node.name: node.input[1] for node in onnx.load(fp32).graph.node if len(node.input) > 1}
    result = quantize(fp32, tmp_path / "a.onnx", calibration, judge, allowed_points=2.0)
    assert [weights[name] for name in result.left_out] == ["tail.3.weight"]
    result = quantize(fp32, tmp_path / "b.onnx", calibration, judge, allowed_points=0.5)
    assert [weights[name] for name in result.quantized] == ["conv1.weight", "classifier.weight"]


def test_what_cannot_be_quantised_without_harm_is_refused(fp32: Path, tmp_path: Path) -> None:
    def judge(file: Path) -> float:
        return 90.0 if file == fp32 else 50.0

    with pytest.raises(QuantizationError, match=r"every choice of layers loses more than 0\.2 points"):
        quantize(fp32, tmp_path / "a.onnx", noise(4, (1, 24, 24)), judge, allowed_points=0.2)


def test_a_network_of_nothing_but_looking_is_refused(tmp_path: Path) -> None:
    model = exported("none").copy()
    del model.graph.node[-1]
    model.graph.output[0].name = model.graph.node[-1].output[0]
    onnx.save(model, tmp_path / "none.onnx")
    with pytest.raises(QuantizationError, match="no Conv, Gemm, MatMul is left to quantise"):
        quantize(tmp_path / "none.onnx", tmp_path / "a.onnx", noise(4, (1, 14, 12)), lambda _: 0.0, 0.2)


def test_localisation_grid_and_sampling_stay_in_float32(convolutional: Exported, fp32: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantize(fp32, path, noise(8, (1, 24, 24)), judge=lambda _: 50.0, allowed_points=0.1)
    looking, graph = transformer_nodes(convolutional.model.graph), onnx.load(path).graph
    assert looking <= {node.name for node in graph.node}
    quantised = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    made = {
        name for node in graph.node if node.name in looking and node.op_type != "GridSample" for name in node.output
    }
    assert not quantised & made
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    localisation = [name for name in stored if name.startswith(("first.", "second."))]
    assert localisation
    assert {stored[name] for name in localisation} == {TensorProto.FLOAT}


def test_an_int8_theta_that_is_moved_too_far_fails_the_proof(convolutional: Exported, tmp_path: Path) -> None:
    """By a twentieth of 24 pixels; forced thetas are exact."""
    moved = convolutional.copy()
    bias = next(tensor for tensor in moved.graph.initializer if tensor.name == "second.head.bias")
    shifted = numpy_helper.to_array(bias) + np.array([0, 0, 0.1, 0, 0, 0], np.float32)
    bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))
    failures = parity(convolutional, tmp_path, moved, precision="int8").failures
    assert [failure.partition(" ")[0] for failure in failures] == ["real", "noise"]
    assert all("px, 0.5 allowed" in failure for failure in failures)


def input_shape(model: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(model.graph.input[0].type.tensor_type.shape.dim)


def answer(
    file: Path, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    return list(session.run(["logits", "theta"], {"image": images}))
