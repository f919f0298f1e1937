"""Every transform against an independent reference: OpenCV, scipy, torch's own affine grid, or numpy by the formula."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from torch import Tensor
from torch.nn import functional as F

from training.stn import Affine, Affine3d, Attention, Projective, Similarity, ThinPlateSpline, Transform, Translation

SIZE = (5, 7)
PLANAR: dict[str, Callable[..., Transform]] = {
    "translation": Translation,
    "attention": Attention,
    "similarity": Similarity,
    "affine": Affine,
    "projective": Projective,
    "thin_plate_spline": ThinPlateSpline,
}
ALL = [
    pytest.param(lambda build=build, bounded=bounded: build(SIZE, bounded=bounded), id=f"{name}-{bounded}")
    for name, build in PLANAR.items()
    for bounded in (False, True)
]

BOUNDED = ALL[1::2]


def targets(size: tuple[int, ...] = SIZE) -> NDArray[np.float64]:
    """Target coordinates `[H, W, 2]` by the definition: element i of n at (2 i + 1) / n - 1."""
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij")[::-1], axis=-1)


def parameters(transform: Transform, seed: int = 0, spread: float = 0.2) -> Tensor:
    torch.manual_seed(seed)
    return torch.tensor(transform.identity()) + spread * torch.randn(4, transform.parameter_count)


@pytest.mark.parametrize("build", ALL)
def test_identity_grid_is_the_target_grid(build: Callable[[], Transform]) -> None:
    _, grid = build()(torch.tensor([build().identity()]))
    np.testing.assert_allclose(grid[0].numpy(), targets(), atol=1e-6)


def test_identity_of_volumes() -> None:
    transform = Affine3d((3, 4, 5))
    _, grid = transform(torch.tensor([transform.identity()]))
    np.testing.assert_allclose(grid[0].numpy(), targets((3, 4, 5)), atol=1e-6)


def test_affine_grid_equals_torch() -> None:
    theta, grid = Affine(SIZE)(parameters(Affine(SIZE)))
    expected = F.affine_grid(theta, [4, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(grid, expected, atol=1e-6, rtol=0)


def test_volume_grid_equals_torch() -> None:
    transform = Affine3d((3, 4, 5))
    theta, grid = transform(parameters(transform))
    torch.testing.assert_close(grid, F.affine_grid(theta, [4, 1, 3, 4, 5], align_corners=False), atol=1e-6, rtol=0)


def test_projective_grid_equals_opencv() -> None:
    theta, grid = Projective(SIZE)(parameters(Projective(SIZE)))
    for matrix, mapped in zip(theta.double().numpy(), grid.numpy(), strict=True):
        expected = cv2.perspectiveTransform(targets().reshape(-1, 1, 2), matrix)
        np.testing.assert_allclose(mapped, expected.reshape(*SIZE, 2), atol=1e-5)


@pytest.mark.parametrize("control_size", [2, 3, 4, 5])
@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_spline_grid_equals_scipy(control_size: int, regularization: float) -> None:
    transform = ThinPlateSpline(SIZE, control_size=control_size, regularization=regularization)
    theta, grid = transform(parameters(transform))
    axis = np.linspace(-1, 1, control_size)
    controls = np.stack(np.meshgrid(axis, axis, indexing="ij")[::-1], axis=-1).reshape(-1, 2)
    for points, mapped in zip(theta.double().numpy(), grid.numpy(), strict=True):
        # scipy's kernel is r^2 log r, half of ours, and so is its smoothing.
        spline = RBFInterpolator(controls, points, kernel="thin_plate_spline", degree=1, smoothing=regularization / 2)
        np.testing.assert_allclose(mapped, spline(targets().reshape(-1, 2)).reshape(*SIZE, 2), atol=1e-5)


def test_spline_reproduces_any_affine_map() -> None:
    torch.manual_seed(1)
    matrix, offset = torch.randn(3, 2, 2), torch.randn(3, 1, 2)
    spline = ThinPlateSpline(SIZE)
    grid = spline.grid(spline.controls @ matrix.mT + offset)
    affine = Affine(SIZE).grid(torch.cat([matrix, offset.mT], dim=-1))
    torch.testing.assert_close(grid, affine, atol=1e-5, rtol=0)


def test_attention_and_similarity_are_the_matrices_they_say() -> None:
    theta, _ = Attention(SIZE)(torch.tensor([[0.5, 0.1, -0.2]]))
    torch.testing.assert_close(theta, torch.tensor([[[0.5, 0.0, 0.1], [0.0, 0.5, -0.2]]]))
    theta, _ = Similarity(SIZE)(torch.tensor([[0.3, 0.4, 0.1, -0.2]]))
    torch.testing.assert_close(theta, torch.tensor([[[0.3, -0.4, 0.1], [0.4, 0.3, -0.2]]]))
    theta, _ = Translation(SIZE, scale=0.5)(torch.tensor([[0.1, -0.2]]))
    torch.testing.assert_close(theta, torch.tensor([[[0.5, 0.0, 0.1], [0.0, 0.5, -0.2]]]))


@pytest.mark.parametrize("build", ALL)
def test_start_looks_where_it_says(build: Callable[[], Transform]) -> None:
    transform = build()
    scale = 1.0 if isinstance(transform, Translation) else 0.75
    _, grid = transform(torch.tensor([transform.start((0.2, -0.1), scale)]))
    np.testing.assert_allclose(grid[0].numpy(), targets() * scale + np.array([0.2, -0.1]), atol=1e-5)


@pytest.mark.parametrize("build", BOUNDED)
@pytest.mark.parametrize("value", [-1e6, 1e6])
def test_bounded_transforms_stay_near_the_image(build: Callable[[], Transform], value: float) -> None:
    transform = build()
    theta, grid = transform(torch.full((1, transform.parameter_count), value))
    assert theta.abs().max() <= 10
    assert grid.abs().max() <= 100


@pytest.mark.parametrize("build", ALL)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_no_parameter_makes_a_grid_that_is_not_finite(build: Callable[[], Transform], value: float) -> None:
    transform = build()
    raw = parameters(transform)
    raw[1] = value
    raw[2, 0] = value
    raw.requires_grad_()
    theta, grid = transform(raw)
    (theta.sum() + grid.sum()).backward()
    assert theta.isfinite().all()
    assert grid.isfinite().all()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_projective_horizon_is_finite_and_keeps_its_side() -> None:
    theta = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]])  # w = x: the horizon runs through the middle
    x = Projective((1, 5)).grid(theta)[0, 0, :, 0]
    assert x.isfinite().all()
    torch.testing.assert_close(x[[0, 1, 3, 4]], torch.ones(4))


@pytest.mark.parametrize("build", ALL)
def test_gradients_of_the_grid(build: Callable[[], Transform]) -> None:
    transform = build().double()
    raw = parameters(transform).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: transform(p)[1], (raw,))


@pytest.mark.parametrize("build", ALL)
def test_grid_stays_in_float32_under_autocast(build: Callable[[], Transform]) -> None:
    transform = build()
    raw = parameters(transform)
    _, expected = transform(raw.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        theta, grid = transform(raw.bfloat16())
    assert theta.dtype == grid.dtype == torch.float32
    torch.testing.assert_close(grid, expected)


@pytest.mark.parametrize("build", ALL)
def test_parameters_are_named(build: Callable[[], Transform]) -> None:
    transform = build()
    assert len(set(transform.parameter_names)) == transform.parameter_count == len(transform.identity())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Affine((0, 4)), "output_size"),
        (lambda: Affine((4,)), "output_size"),
        (lambda: Affine3d((4, 4)), "depth, height, width"),
        (lambda: Translation(SIZE, scale=float("nan")), "scale: expected a positive number, got nan"),
        (lambda: Translation(SIZE, scale=-1), "scale"),
        (lambda: ThinPlateSpline(SIZE, control_size=1), "control_size"),
        (lambda: ThinPlateSpline(SIZE, regularization=-1), "regularization"),
        (lambda: ThinPlateSpline(SIZE, bounded=True).start((0.9, 0.0), 0.1), "out of reach"),
        (lambda: Affine(SIZE).start((1.5, 0.0)), "center"),
        (lambda: Affine(SIZE, bounded=True).start((0.0, 0.0), 9.0), "scale"),
    ],
)
def test_bad_arguments_are_named(build: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()
