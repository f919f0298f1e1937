"""The plug-in module: anywhere in a network, in series, in parallel, compiled and exported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_serve import poses
from training.stn import (
    Affine,
    Affine3d,
    Attention,
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    ParallelSpatialTransformer,
    Projective,
    Sampler,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Transform,
    Translation,
    compose,
    parameter_groups,
    tile,
)

TRANSFORMS = [Translation, Attention, Similarity, Affine, Projective, ThinPlateSpline]


def transformer(
    transform: Transform, sampler: Sampler | None = None, size: tuple[int, ...] = (2, 12, 10)
) -> SpatialTransformer:
    torch.manual_seed(0)
    return SpatialTransformer(FullyConnectedLocalization(size, (8,)), transform, sampler, head_std=0.1)


def images(count: int = 3, size: tuple[int, ...] = (2, 12, 10)) -> Tensor:
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", TRANSFORMS)
def test_starts_as_the_identity(build: type[Transform]) -> None:
    module = SpatialTransformer(FullyConnectedLocalization((2, 12, 10)), build((12, 10)))
    warped, _ = module(images())
    torch.testing.assert_close(warped, images(), atol=3e-6, rtol=0)


@pytest.mark.parametrize("build", [Attention, Similarity, Affine, Projective, ThinPlateSpline])
def test_may_start_closer_to_the_image(build: type[Transform]) -> None:
    transform = build((6, 6))
    module = SpatialTransformer(nn.Flatten(), transform, features=288, start=transform.start((0, 0), scale=0.5))
    warped, _ = module(images(size=(2, 12, 12)))
    torch.testing.assert_close(warped, images(size=(2, 12, 12))[..., 3:9, 3:9], atol=3e-6, rtol=0)


@pytest.mark.parametrize("build", TRANSFORMS)
def test_output_size_is_independent_of_input_size(build: type[Transform]) -> None:
    warped, theta = transformer(build((5, 7)))(images())
    assert warped.shape == (3, 2, 5, 7)
    assert len(theta) == 3


def test_warps_volumes() -> None:
    module = transformer(Affine3d((3, 4, 5)), size=(1, 6, 6, 6))
    warped, theta = module(images(2, (1, 6, 6, 6)))
    assert warped.shape == (2, 1, 3, 4, 5)
    assert theta.shape == (2, 3, 4)


def test_supersampling_divides_the_output() -> None:
    module = transformer(Affine((12, 10)), Sampler(supersample=2))
    assert module.output_size == (6, 5)
    assert module(images())[0].shape == (3, 2, 6, 5)


def test_any_module_localises_and_may_see_something_else() -> None:
    module = SpatialTransformer(nn.Sequential(nn.Flatten(), nn.Linear(4, 6)), Affine((12, 10)), features=6)
    warped, theta = module(images(), torch.rand(3, 1, 2, 2))
    assert warped.shape == (3, 2, 12, 10)
    assert theta.shape == (3, 2, 3)


@pytest.mark.parametrize("build", TRANSFORMS)
def test_gradients_reach_the_input_and_the_localisation_network(build: type[Transform]) -> None:
    module, maps = transformer(build((6, 5))), images().requires_grad_()
    module(maps)[0].square().sum().backward()
    assert maps.grad is not None and maps.grad.abs().sum() > 0  # noqa: PT018 - for the type checker
    for parameter in module.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0  # noqa: PT018


def test_a_localisation_network_gone_mad_poisons_nobody() -> None:
    """One image of the batch gets a theta that is not a number: its neighbours get the same answer and gradient."""
    module, maps = transformer(Affine((6, 5))), images()
    expected, _ = module(maps)
    poisoned = maps.clone()
    context = maps.clone()
    context[1] = float("nan")
    warped, theta = module(poisoned.requires_grad_(), context)
    assert theta.isfinite().all()
    torch.testing.assert_close(warped[[0, 2]], expected[[0, 2]])
    warped.sum().backward()
    assert poisoned.grad is not None and poisoned.grad.isfinite().all()  # noqa: PT018


def test_parallel_transformers_start_apart_and_share_their_localisation() -> None:
    transform = Translation((6, 5), scale=0.5)
    module = ParallelSpatialTransformer(FullyConnectedLocalization((2, 12, 10), (8,)), transform, tile(transform, 4))
    warped, theta = module(images())
    assert warped.shape == (3, 4, 2, 6, 5)
    expected = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(theta[0, :, :, 2], expected)
    quarters = images()[0].reshape(2, 2, 6, 2, 5)  # C, row, h, column, w
    for index, quarter in enumerate(warped[0]):
        torch.testing.assert_close(quarter, quarters[:, index // 2, :, index % 2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_tiles_stay_inside_the_image_and_differ(count: int) -> None:
    transform = Attention((4, 4))
    starts = torch.tensor(tile(transform, count))
    theta, grid = transform(starts)
    assert grid.abs().max() <= 1
    assert len(theta.unique(dim=0)) == count


def test_series_composes_onto_the_image() -> None:
    """Two transformers in series see what one with the composed theta sees, up to the second interpolation."""
    smooth = torch.linspace(0, 1, 64).expand(1, 1, 64, 64) + torch.linspace(0, 2, 64)[:, None]
    first = torch.tensor([[[0.6, 0.1, 0.1], [-0.1, 0.6, 0.0]]])
    second = torch.tensor([[[0.7, -0.2, 0.05], [0.2, 0.7, -0.05]]])
    grid, sampler = Affine((64, 64)).grid, Sampler()
    two_steps = sampler(sampler(smooth, grid(first)), grid(second))
    one_step = sampler(smooth, grid(compose(first, second)))
    torch.testing.assert_close(two_steps, one_step, atol=1e-4, rtol=0)


def test_composition_agrees_with_mapping_points_twice() -> None:
    torch.manual_seed(0)
    affine, projective = torch.randn(4, 2, 3) * 0.3, torch.eye(3) + torch.randn(4, 3, 3) * 0.1
    spline = ThinPlateSpline((2, 2)).controls + torch.randn(4, 16, 2) * 0.1
    points = np.random.default_rng(0).uniform(-1, 1, (5, 2))
    for outer, inner in [
        (affine, affine.flip(0)),
        (projective, affine),
        (affine, projective),
        (projective, projective.flip(0)),
    ]:
        twice = poses.map_points(outer.numpy(), poses.map_points(inner.numpy(), points))
        np.testing.assert_allclose(poses.map_points(compose(outer, inner).numpy(), points), twice, atol=1e-5)
        np.testing.assert_allclose(
            poses.compose(outer.numpy(), inner.numpy()), compose(outer, inner).numpy(), atol=1e-6
        )
    mapped = compose(projective, spline).numpy()
    np.testing.assert_allclose(mapped, poses.map_points(projective.numpy(), spline.numpy()), atol=1e-5)
    with pytest.raises(ValueError, match="outer"):
        compose(spline, affine)


@pytest.mark.parametrize("build", TRANSFORMS)
def test_poses_map_points_as_the_grid_does(build: type[Transform]) -> None:
    transform = build((9, 7))
    torch.manual_seed(2)
    theta, grid = transform(torch.tensor([transform.identity()]) + 0.1 * torch.randn(3, transform.parameter_count))
    targets = Affine((9, 7)).grid(torch.eye(2, 3)[None])[0].reshape(-1, 2).numpy()
    mapped = poses.map_points(theta.numpy(), targets)
    np.testing.assert_allclose(mapped, grid.reshape(3, -1, 2).numpy(), atol=1e-5)


def test_parameter_groups_slow_the_localisation_networks() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 1), transformer(Affine((12, 10))), nn.Conv2d(2, 2, 1))
    others, localization = parameter_groups(network, 0.1, 0.01)
    assert (others["lr"], localization["lr"]) == (0.1, pytest.approx(0.001))
    assert len(others["params"]) == 4
    assert len(localization["params"]) == 4  # one hidden layer and the head, weight and bias each
    assert len(parameter_groups(nn.Linear(2, 2), 0.1, 0.01)) == 1


@pytest.mark.parametrize("build", TRANSFORMS)
def test_compiles_without_graph_breaks(build: type[Transform]) -> None:
    module = transformer(build((6, 5)))
    expected = module(images())
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(compiled(images()), expected, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("build", [*TRANSFORMS, Affine3d])
def test_exports_with_a_dynamic_batch(build: type[Transform]) -> None:
    size = (1, 6, 6, 6) if build is Affine3d else (2, 12, 10)
    module = transformer(build((6, 5, 4)[: len(size) - 1]), size=size).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (images(2, size),), dynamic_shapes={"maps": {0: batch}})
    for got, wanted in zip(program.module()(images(5, size)), module(images(5, size)), strict=True):
        torch.testing.assert_close(got, wanted)


def test_works_in_reduced_precision() -> None:
    module = transformer(Affine((12, 10)))
    with torch.autocast("cpu", torch.bfloat16):
        warped, theta = module(images().bfloat16())
    assert (warped.dtype, theta.dtype) == (torch.bfloat16, torch.float32)


def test_convolutional_localisation_reads_any_size_that_fits() -> None:
    for options in ({}, {"filters": (4, 8), "kernel_size": 3, "padding": 1, "pool": "each", "batch_norm": True}):
        localization = ConvolutionalLocalization((3, 40, 30), **options)  # type: ignore[arg-type]
        assert localization(torch.rand(2, 3, 40, 30)).shape == (2, localization.out_features)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SpatialTransformer(nn.Flatten(), Affine((4, 4))), "features: Flatten has no out_features"),
        (lambda: SpatialTransformer(nn.Flatten(), Affine((4, 4)), features=0), "features"),
        (lambda: SpatialTransformer(nn.Flatten(), Affine((4, 5)), Sampler(supersample=2), features=4), "output_size"),
        (lambda: SpatialTransformer(nn.Flatten(), Affine((4, 4)), features=4, head_std=-1), "head_std"),
        (lambda: SpatialTransformer(nn.Flatten(), Affine((4, 4)), features=4, start=[1.0]), "start: expected 6"),
        (lambda: ParallelSpatialTransformer(nn.Flatten(), Affine((4, 4)), [], features=4), "starts"),
        (lambda: ParallelSpatialTransformer(nn.Flatten(), Affine((4, 4)), [[1.0]], features=4), "rows of 6"),
        (lambda: tile(Affine((4, 4)), 0), "count"),
        (lambda: parameter_groups(nn.Linear(1, 1), 0.1, float("nan")), "localization_multiplier"),
        (lambda: ConvolutionalLocalization((1, 8, 8)), "too small"),
        (lambda: ConvolutionalLocalization((1, 40, 40), pool="none"), "pool: expected"),
        (
            lambda: ParallelSpatialTransformer(nn.Flatten(), Attention((4, 4)), [[1, 0, float("nan")]], features=4),
            "starts",
        ),
        (lambda: compose(torch.eye(2, 3)[None], torch.eye(3, 4)[None]), "outer, inner"),
        (lambda: Affine((4, 4))(torch.zeros(2, 5)), r"parameters: affine expects \[N, 6\]"),
        (lambda: transformer(Affine((4, 4)))(torch.zeros(2, 12, 10), torch.zeros(2, 2, 12, 10)), "images, grid"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
