"""Feature maps sampled pixel by pixel in training: what `F.grid_sample` gives, and gradients as it gives them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from training.stn import Affine, Sampler, SpatialTransformer
from training.stn.pixel_sampling import MIN_CHANNELS, is_worth_it, sample_by_pixel


def pixelwise(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    maps = torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return maps.contiguous(memory_format=torch.channels_last)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.just(MIN_CHANNELS), st.integers(1, 9), st.integers(1, 9)),
    output=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    reach=st.sampled_from([0.5, 1.0, 1.5, 100.0]),
    seed=st.integers(0, 99),
)
def test_it_equals_torch_within_and_beyond_the_border(
    size: tuple[int, int, int, int], output: tuple[int, int], reach: float, seed: int
) -> None:
    maps = pixelwise(*size, seed=seed, dtype=torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    grid = (torch.rand(size[0], *output, 2, generator=generator, dtype=torch.float64) * 2 - 1) * reach
    grid.requires_grad_()
    pull = torch.randn(size[0], size[1], *output, generator=generator, dtype=torch.float64)

    ours = sample_by_pixel(maps, grid)
    torchs = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, torchs, atol=1e-9, rtol=0)
    for gradient, expected in zip(
        torch.autograd.grad(ours, (maps, grid), pull), torch.autograd.grad(torchs, (maps, grid), pull), strict=True
    ):
        torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)


def test_on_pixels_and_on_the_border_gradients_are_torchs() -> None:
    """Where every transformer starts: the identity lies on pixels, its outermost ones on the border."""
    maps = pixelwise(2, MIN_CHANNELS, 8, 8)
    grid = Affine((8, 8)).grid(torch.eye(2, 3).repeat(2, 1, 1)).requires_grad_()
    (ours,) = torch.autograd.grad(sample_by_pixel(maps, grid).square().sum(), grid)
    torchs = F.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    (expected,) = torch.autograd.grad(torchs.square().sum(), grid)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_what_comes_out_is_laid_out_as_what_went_in() -> None:
    maps = pixelwise(2, MIN_CHANNELS, 6, 5).requires_grad_()
    before = maps * 2
    layouts: list[bool] = []
    before.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    sampled = Sampler()(before, Affine((4, 3)).grid(torch.eye(2, 3).repeat(2, 1, 1)))
    assert sampled.is_contiguous(memory_format=torch.channels_last)
    sampled.sum().backward()
    assert layouts == [True]


def test_only_what_gains_goes_by_pixel() -> None:
    assert is_worth_it(pixelwise(2, MIN_CHANNELS, 6, 5))
    assert not is_worth_it(pixelwise(2, MIN_CHANNELS // 2, 6, 5))
    assert not is_worth_it(pixelwise(2, MIN_CHANNELS, 6, 5).contiguous())
    assert not is_worth_it(torch.randn(2, MIN_CHANNELS, 3, 6, 5))


def test_exported_networks_keep_the_operator_that_runtimes_know() -> None:
    localization = nn.Sequential(nn.Flatten(), nn.Linear(MIN_CHANNELS * 36, 4), nn.ReLU())
    transformer = SpatialTransformer(localization, Affine((6, 6)), features=4).eval()
    program = torch.export.export(transformer, (pixelwise(2, MIN_CHANNELS, 6, 6),))
    operators = {str(node.target) for node in program.graph.nodes}
    assert any("grid_sampl" in operator for operator in operators)
    assert not any("embedding_bag" in operator for operator in operators)
