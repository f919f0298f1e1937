"""Weights in float16, computed with in float32: a file of half the size whose numbers are those of rounded weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_photo_networks import photo_network
from torch import nn

from export.half_weights import round_weights, store_in_half
from export.onnx_export import Servable, export_onnx
from training.models.photos import PhotoNetwork

LABELS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def network() -> PhotoNetwork:
    return photo_network(transformers=2, localization="keypoints")


@pytest.fixture(scope="module")
def files(network: PhotoNetwork, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("half")
    full, half = folder / "full.onnx", folder / "half.onnx"
    rounded = round_weights(network)
    contract = export_onnx(rounded, LABELS, full)
    shutil.copy(full, half)
    store_in_half(half, rounded)
    contract.check(onnx.load(half))
    return full, half


def test_the_weights_take_half_the_space(files: tuple[Path, Path]) -> None:
    def weights(path: Path) -> int:
        return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer if ".model." in tensor.name)

    full, half = (weights(path) for path in files)
    assert half == full / 2


def test_it_computes_with_rounded_weights_in_float32(network: PhotoNetwork, files: tuple[Path, Path]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    with torch.no_grad():
        expected = Servable(round_weights(network))(torch.from_numpy(image))
    session = onnxruntime.InferenceSession(files[1], providers=["CPUExecutionProvider"])
    for output, reference in zip(session.run(None, {"image": image}), expected, strict=True):
        assert np.abs(np.asarray(output) - reference.numpy()).max() < 1e-5


def test_what_says_where_to_look_keeps_its_bits(network: PhotoNetwork, files: tuple[Path, Path]) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load(files[1]).graph.initializer}
    assert tensors["transformer.head.weight"].data_type == onnx.TensorProto.FLOAT
    for grid in ("along", "across"):
        assert tensors[f"transformer.transform.{grid}"].data_type == onnx.TensorProto.FLOAT
    assert network.transformer
    rounded = round_weights(network).get_submodule("transformer.head").state_dict()
    assert all(torch.equal(rounded[name], value) for name, value in network.transformer.head.state_dict().items())


def test_rounding_folds_normalisations_without_changing_what_is_computed(network: PhotoNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]  # it is tracked
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    rounded = round_weights(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in rounded.modules())
    photos = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        expected, found = network(photos), rounded(photos)
    assert torch.allclose(found.logits, expected.logits, rtol=1e-2, atol=1e-2)
