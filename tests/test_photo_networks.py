"""Networks of photos: parallel crops on a pretrained backbone, from TensorFlow's file or the library's folders."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from training.config import RecipeError, load_recipe, recipe_from_fields, recipe_names
from training.models.building import build
from training.models.keypoints import KeypointLocalization
from training.models.mobilenet import WeightsError, mobilenet_config, read_mobilenet_weights
from training.models.photos import PhotoNetwork, PhotosModel
from training.models.pretrained import build_backbone, describe_backbone, load_backbone_weights

SMALL = {
    "model_type": "mobilenet_v1",
    "depth_multiplier": 0.25,
    "tf_padding": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def photo_network(size: int = 128, classes: int = 3, **settings: Any) -> PhotoNetwork:
    torch.manual_seed(0)
    sizes = {"crop_size": 64, "localization_size": 64}
    config = PhotosModel(family="photos", architecture=SMALL, **{**sizes, **settings})
    network = build(config, (3, size, size), classes)
    assert isinstance(network, PhotoNetwork)
    return network.eval()


def write_mobilenet(path: Path) -> dict[str, np.ndarray]:
    """A quarter of MobileNet's width, with random weights, in TensorFlow's layout."""
    random = np.random.default_rng(0)
    widths = [8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256]
    arrays: dict[str, np.ndarray] = {"conv1__kernel": random.normal(0, 0.3, (3, 3, 3, 8))}
    normalised = [("conv1", 8)]
    for block, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        arrays[f"conv_dw_{block}__depthwise_kernel"] = random.normal(0, 0.3, (3, 3, inputs, 1))
        arrays[f"conv_pw_{block}__kernel"] = random.normal(0, 0.3, (1, 1, inputs, outputs))
        normalised += [(f"conv_dw_{block}", inputs), (f"conv_pw_{block}", outputs)]
    for name, width in normalised:
        arrays[f"{name}_bn__gamma"] = random.uniform(0.5, 1.5, width)
        arrays[f"{name}_bn__beta"] = random.normal(0, 0.5, width)
        arrays[f"{name}_bn__moving_mean"] = random.normal(0, 0.5, width)
        arrays[f"{name}_bn__moving_variance"] = random.uniform(0.5, 1.5, width)
    arrays["conv_preds__kernel"] = random.normal(0, 0.3, (1, 1, 256, 10))
    arrays["conv_preds__bias"] = random.normal(0, 0.3, 10)
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub thinks of its flags
    return arrays


def tensorflow_mobilenet(arrays: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """The feature map of an image `[H, W, 3]` in [0, 1], straight from TensorFlow's definition, in float64."""
    strides = {2: 2, 4: 2, 6: 2, 12: 2}

    def normalise(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance = arrays[f"{name}_bn__moving_mean"], arrays[f"{name}_bn__moving_variance"]
        x = (x - mean) / np.sqrt(variance + 1e-3) * arrays[f"{name}_bn__gamma"] + arrays[f"{name}_bn__beta"]
        return np.asarray(np.clip(x, 0, 6))

    def windows(x: np.ndarray, stride: int) -> np.ndarray:
        """`[h, w, C, 3, 3]`; 'same': what is missing is shared out, the odd one at the bottom and right."""
        before, after = [], []
        for size in x.shape[:2]:
            missing = max((-(-size // stride) - 1) * stride + 3 - size, 0)
            before.append(missing // 2)
            after.append(missing - missing // 2)
        x = np.pad(x, [(before[0], after[0]), (before[1], after[1]), (0, 0)])
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))[::stride, ::stride]

    x = np.einsum("hwcij,ijco->hwo", windows(image.astype(np.float64) * 2 - 1, 2), arrays["conv1__kernel"])
    x = normalise(x, "conv1")
    for block in range(1, 14):
        kernel = arrays[f"conv_dw_{block}__depthwise_kernel"][..., 0]
        x = normalise(np.einsum("hwcij,ijc->hwc", windows(x, strides.get(block, 1)), kernel), f"conv_dw_{block}")
        x = normalise(x @ arrays[f"conv_pw_{block}__kernel"][0, 0], f"conv_pw_{block}")
    return x


@pytest.mark.parametrize("size", [64, 75])
def test_mobilenet_computes_what_tensorflow_defines(tmp_path: Path, size: int) -> None:
    arrays = write_mobilenet(tmp_path / "weights.npz")
    name = str(tmp_path / "weights.npz")
    backbone = build_backbone(describe_backbone(name))
    load_backbone_weights(backbone, name)
    image = np.random.default_rng(1).random((size, size, 3), np.float32)
    expected = tensorflow_mobilenet(arrays, image)
    with torch.no_grad():
        features = backbone.eval()(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert features.shape == expected.shape
    assert np.abs(features - expected).max() < 1e-3


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_mobilenet(tmp_path / "weights.npz")
    other = build_backbone({**SMALL, "depth_multiplier": 0.5})
    with pytest.raises(WeightsError, match=r"weights.npz.*do not fit.*conv_stem"):
        load_backbone_weights(other, str(tmp_path / "weights.npz"))


def test_files_that_are_no_mobilenet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no weights")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "objects.npz", conv1__kernel=np.array([{}], object))
    for name, words in (("text", "not a readable"), ("other", "conv1__kernel"), ("objects", "not a readable")):
        with pytest.raises(WeightsError, match=words):
            read_mobilenet_weights(tmp_path / f"{name}.npz")


def test_backbones_of_the_library_come_from_its_folders(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    models = {
        "resnet": ResNetModel(ResNetConfig(**sizes, layer_type="basic")),
        "dinov2": Dinov2Model(
            Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        backbone = build_backbone(describe_backbone(str(tmp_path / name)))
        load_backbone_weights(backbone, str(tmp_path / name))
        side = {"resnet": 56 // 8, "dinov2": 56 // 14}[name]
        assert backbone.eval()(torch.rand(2, 3, 56, 56)).shape == (2, 16, side, side)
        for key, value in model.state_dict().items():
            assert torch.equal(backbone.model.state_dict()[key], value)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    config.save_pretrained(tmp_path / "pickled")
    torch.save(ResNetModel(config).state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    backbone = build_backbone(describe_backbone(str(tmp_path / "pickled")))
    with pytest.raises(WeightsError, match="safetensors"):
        load_backbone_weights(backbone, str(tmp_path / "pickled"))


def test_a_backbone_that_cannot_be_had_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("training.models.pretrained.reachable", lambda _: False)
    monkeypatch.setenv("STN_DATA_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match=r"'nobody/nothing'.*cannot be reached.*STN_DATA_DIR/weights"):
        describe_backbone("nobody/nothing")


def test_crops_start_as_tiles_and_are_classified_together() -> None:
    network = photo_network(transformers=4)
    logits, theta = network(torch.rand(2, 3, 128, 128))
    assert logits.shape == (2, 3)
    assert theta is not None
    centres = [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert theta[0, :, :, 2].tolist() == centres
    assert [placed.name for placed in network.transformers()] == ["part1", "part2", "part3", "part4"]


def test_the_plain_network_sees_a_reduced_photo() -> None:
    network = photo_network(transformers=0)
    photo = torch.rand(1, 3, 128, 128)
    logits, theta = network(photo)
    assert theta is None
    small = photo_network(64, transformers=0)
    assert torch.allclose(logits, small(F.avg_pool2d(photo, 2)).logits, atol=1e-6)


def test_keypoints_follow_the_thing() -> None:
    """Moved by a quarter of the photo, what the backbone is active on moves the crops by as much, from the start."""
    network = photo_network(transformers=2, localization="keypoints")
    assert network.transformer
    spot = torch.zeros(2, 8, 8, 8)
    spot[0, :, 2, 2], spot[1, :, 2, 4] = 50.0, 50.0
    backbone = network.transformer.localization.backbone
    assert isinstance(backbone, nn.Module)
    backbone.forward = lambda _: spot.mean(1, keepdim=True).expand(-1, 256, -1, -1)
    theta = network(torch.rand(2, 3, 128, 128)).theta
    assert theta is not None
    assert (theta[1, :, 0, 2] - theta[0, :, 0, 2]).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
    assert (theta[0, 1, 0, 2] - theta[0, 0, 0, 2]).item() == pytest.approx(0.4, abs=1e-3)


def test_the_backbone_behind_keypoints_does_not_learn() -> None:
    """Neither its weights nor its running statistics."""
    network = photo_network(transformers=2, localization="keypoints").train()
    assert network.transformer
    localization = network.transformer.localization
    assert isinstance(localization, KeypointLocalization)
    before = {name: value.clone() for name, value in localization.backbone.state_dict().items()}
    network(torch.rand(4, 3, 128, 128)).logits.sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert localization.score.weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in localization.backbone.state_dict().items())


def test_crops_that_begin_with_a_plain_network_say_its_mean() -> None:
    plain = photo_network(64, transformers=0)
    network = photo_network(transformers=2)
    network.adopt(plain)
    photo = torch.rand(1, 3, 128, 128)
    logits, theta = network(photo)
    assert network.transformer
    assert theta is not None
    crops = [
        F.grid_sample(photo, F.affine_grid(one[None], [1, 3, 64, 64], align_corners=False), align_corners=False)
        for one in theta[0]
    ]
    expected = torch.stack([plain(crop).logits for crop in crops]).mean(0)
    assert torch.allclose(logits, expected, atol=1e-4)


def test_a_network_of_other_classes_is_not_adopted() -> None:
    with pytest.raises(ValueError, match=r"3 classes.*5"):
        photo_network(transformers=2, classes=3).adopt(photo_network(64, transformers=0, classes=5))


def test_shared_descriptors_are_one() -> None:
    own, shared = photo_network(transformers=2), photo_network(transformers=2, descriptors="shared")
    assert len(own.descriptors) == 2
    assert len(shared.descriptors) == 1
    assert shared(torch.rand(2, 3, 128, 128)).logits.shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith(("birds", "photos"))])
def test_recipes_of_photos_survive_a_checkpoint(name: str) -> None:
    recipe = load_recipe(name, ["data.path='somewhere'"])
    assert isinstance(recipe.model, PhotosModel)
    resolved = replace(recipe, model=replace(recipe.model, architecture=SMALL))
    assert recipe_from_fields(resolved.to_fields()) == resolved


def test_data_and_network_must_fit() -> None:
    with pytest.raises(RecipeError, match=r"'digits' does not fit data.family 'folder'"):
        recipe_from_fields({"name": "x", "data": {"family": "folder", "path": "p"}})
    with pytest.raises(RecipeError, match=r"data\.family: expected one of .*'birds', 'folder', got 'fish'"):
        recipe_from_fields({"name": "x", "data": {"family": "fish"}})
    with pytest.raises(RecipeError, match=r"x: data\.path"):
        recipe_from_fields({"name": "x", "data": {"family": "folder"}}, source="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transformers": -1}, "transformers"),
        ({"scale": 0}, "scale"),
        ({"crop_size": 50}, r"crop_size.*divisor of 128"),
        ({"localization_size": 96}, r"localization_size.*divisor of 128"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        photo_network(**{"transformers": 0 if "crop_size" in settings else 2, **settings})


def test_mobilenets_width_is_read_from_its_file(tmp_path: Path) -> None:
    write_mobilenet(tmp_path / "weights.npz")
    assert mobilenet_config(tmp_path / "weights.npz")["depth_multiplier"] == 0.25
