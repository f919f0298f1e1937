"""Readers of house numbers: the paper's sizes, and thetas that say where on the image each transformer looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.checkpoint import build_network
from training.config import load_recipe
from training.models.digits import count_parameters
from training.models.house_numbers import HouseNumberNetwork, count_layers, scaled
from training.models.modern_house_numbers import ModernHouseNumberNetwork
from training.models.network import Network

CLASSES = 11


def small(transformers: str, network: str = "paper", side: int = 32) -> Network:
    settings = [f"model.transformers={transformers}", f"model.network={network}", "model.width=0.1", "seed=1"]
    torch.manual_seed(1)
    return build_network(load_recipe("house_numbers_table", settings), (3, side, side), CLASSES).eval()


@pytest.mark.parametrize(
    ("transformers", "size", "parameters", "layers"),
    [
        ("none", 64, 32_820_951, {"Conv2d": 8, "Linear": 3 + 1}),
        ("single", 64, 33_898_877, {"Conv2d": 8 + 2, "Linear": 3 + 1 + 3}),
        ("multi", 64, 37_937_903, {"Conv2d": 8, "Linear": 3 + 1 + 4 * 3}),
        ("none", 128, 61_132_503, {"Conv2d": 8, "Linear": 3 + 1}),
    ],
)
def test_the_papers_networks_at_full_size(
    transformers: str, size: int, parameters: int, layers: dict[str, int]
) -> None:
    """Eight convolutions and three layers of 3072 units are the eleven hidden layers that section 4.2 counts."""
    recipe = load_recipe("house_numbers_paper", [f"model.transformers={transformers}"])
    network = build_network(recipe, (3, size, size), CLASSES)
    assert isinstance(network, HouseNumberNetwork)
    assert count_layers(network) == layers
    assert count_parameters(network) == parameters
    convolutions = [m for m in network.stages.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [48, 64, 128, 160, 192, 192, 192, 192]
    assert {m.kernel_size for m in convolutions} == {(5, 5)}
    linear = [m for m in network.reader.modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [3072, 3072, 3072, 5 * CLASSES]
    assert sum(isinstance(m, nn.MaxPool2d) for m in network.stages.modules()) == 4
    assert sum(isinstance(m, nn.Dropout) for m in network.modules()) == 7 + 3


@pytest.mark.parametrize("network", ["paper", "modern"])
@pytest.mark.parametrize(("transformers", "count"), [("none", 0), ("single", 1), ("multi", 4)])
def test_logits_and_thetas_have_the_shapes_that_are_exported(network: str, transformers: str, count: int) -> None:
    reader = small(transformers, network)
    logits, theta = reader(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 5, CLASSES)
    assert (None if theta is None else tuple(theta.shape)) == ((2, count, 2, 3) if count else None)
    placed = reader.transformers()
    assert [p.name for p in placed] == [f"transformer{i + 1}" for i in range(count)]
    if network == "paper" and count == 4:
        assert [p.place for p in placed] == ["image", "conv2", "conv3", "conv4"]


@pytest.mark.parametrize("network", ["paper", "modern"])
def test_every_image_starts_at_the_identity(network: str) -> None:
    reader = small("multi", network)
    with torch.no_grad():
        for placed in reader.transformers():
            placed.module.head.weight.zero_()
    _, theta = reader(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(theta, torch.eye(2, 3).expand(2, 4, 2, 3), atol=1e-6, rtol=0)


def look_at(network: Network, starts: list[list[float]]) -> None:
    """Force each transformer to look at the square of half width 3rd around (1st, 2nd)."""
    with torch.no_grad():
        for placed, (x, y, scale) in zip(network.transformers(), starts, strict=True):
            placed.module.head.weight.zero_()
            placed.module.head.bias.copy_(torch.tensor(placed.module.transform.start((x, y), scale)))


STARTS = [[0.25, 0.0, 0.5], [0.0, -0.5, 0.5], [0.0, 0.0, 1.0], [0.5, 0.0, 0.5]]
COMPOSED = [[0.25, 0.0, 0.5], [0.25, -0.25, 0.25], [0.25, -0.25, 0.25], [0.375, -0.25, 0.125]]
"""What each sees of the image: centre and half width, each inside the one before."""


@pytest.mark.parametrize("network", ["paper", "modern"])
def test_theta_of_each_transformer_is_composed_onto_the_image(network: str) -> None:
    reader = small("multi", network)
    look_at(reader, STARTS)
    _, theta = reader(torch.rand(1, 3, 32, 32))
    expected = [[[scale, 0, x], [0, scale, y]] for x, y, scale in COMPOSED]
    torch.testing.assert_close(theta[0], torch.tensor(expected), atol=1e-5, rtol=0)


def influence(reader: Network, images: Tensor) -> Tensor:
    """Which pixels of the image the logits depend on."""
    images = images.clone().requires_grad_()
    reader(images).logits.abs().sum().backward()
    assert images.grad is not None
    return images.grad.abs().sum((0, 1))


@pytest.mark.parametrize("network", ["paper", "modern"])
def test_what_the_reader_sees_is_where_theta_says(network: str) -> None:
    """Beyond the look of the last transformer the image changes nothing, but for the margins of convolutions."""
    reader = small("multi", network, side=64)
    look_at(reader, [[0.5, 0.5, 0.4], *[[0.0, 0.0, 1.0]] * 3])
    seen = influence(reader, torch.rand(1, 3, 64, 64))
    seen = seen - seen[:8, :8].mean()  # each image is standardised: every pixel counts a little in its mean
    inside = seen[36:60, 36:60].mean()
    assert inside > 20 * seen[:30, :].abs().mean()
    assert inside > 20 * seen[:, :30].abs().mean()


def test_modern_transformers_sample_the_image_once() -> None:
    """Four in series that undo each other give back the image as it is: paper's would have blurred it four times."""
    reader = small("multi", "modern", side=64)
    assert isinstance(reader, ModernHouseNumberNetwork)
    look_at(reader, [[0.3, 0.1, 0.5], [-0.6, -0.2, 2.0], [0.2, 0.2, 0.8], [-0.25, -0.25, 1.25]])
    images = torch.rand(1, 3, 64, 64)
    seen, theta = images[:, :, ::2, ::2], None
    for transformer in reader.cascade:
        seen, theta = transformer(images, seen, theta)
    torch.testing.assert_close(seen, images, atol=1e-4, rtol=0)


def test_light_and_contrast_do_not_matter() -> None:
    reader = small("multi", "modern")
    images = torch.rand(2, 3, 32, 32)
    before, after = reader(images).logits, reader(images * 0.7 + 0.1).logits
    assert (before - after).abs().max() < 0.1 * before.abs().max()
    assert reader(torch.zeros(1, 3, 32, 32)).logits.isfinite().all()


def test_width_scales_channels_in_eights() -> None:
    assert [scaled(size, 1.0) for size in (48, 64, 160, 3072)] == [48, 64, 160, 3072]
    assert [scaled(size, 0.17) for size in (48, 64, 128, 3072)] == [8, 8, 24, 520]


def test_sides_must_halve_four_times() -> None:
    for network in ("paper", "modern"):
        with pytest.raises(ValueError, match=r"input_size: expected sides that are multiples of 16"):
            small("none", network, side=40)


@pytest.mark.parametrize("transformers", ["none", "multi"])
def test_a_network_for_larger_images_begins_with_the_convolutions_of_one_for_small_ones(transformers: str) -> None:
    learned, larger = small("none"), small(transformers, side=64)
    assert isinstance(learned, HouseNumberNetwork)
    assert isinstance(larger, HouseNumberNetwork)
    with torch.no_grad():
        for weight in learned.parameters():
            weight.add_(0.1)
    before = larger.state_dict(keep_vars=False)
    untouched = {name: value.clone() for name, value in before.items() if not name.startswith("stages.")}
    larger.adopt(learned)
    maps = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(larger.stages, learned.stages, strict=True):
        maps, expected = ours(maps), theirs(maps)
        assert torch.equal(maps, expected)
    assert all(torch.equal(larger.state_dict()[name], value) for name, value in untouched.items())


def test_a_network_of_the_same_size_is_adopted_whole_and_one_that_does_not_fit_not_at_all() -> None:
    begun, trained = small("multi"), small("multi")
    with torch.no_grad():
        for weight in trained.parameters():
            weight.add_(1)
    begun.adopt(trained)
    assert all(torch.equal(value, begun.state_dict()[name]) for name, value in trained.state_dict().items())
    wider = load_recipe("house_numbers_table", ["model.width=0.3"])
    with pytest.raises(ValueError, match="do not fit"):
        begun.adopt(build_network(wider, (3, 64, 64), CLASSES))
