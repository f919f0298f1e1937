"""The sampler against scipy and numpy by the paper's formulas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from training.stn import Affine, Sampler
from training.stn.sampler import Mode, Padding, finite_grid

MODES: list[Mode] = ["bilinear", "nearest", "bicubic"]
PADDINGS: list[Padding] = ["border", "zeros", "reflection", "fill"]
SCIPY_MODES = {"border": "nearest", "zeros": "constant", "reflection": "reflect", "fill": "constant"}


def identity_grid(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    axes = [(2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in size]
    grid = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(list(reversed(grid)), dim=-1).unsqueeze(0).to(dtype)


def sampler(mode: Mode, padding: Padding) -> Sampler:
    return Sampler(mode, padding, fill=0.7 if padding == "fill" else 0.0)


def random_image(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (28, 28), (42, 17), (224, 224), (31, 448)])
def test_identity_is_exact(mode: Mode, padding: Padding, size: tuple[int, int]) -> None:
    image = random_image(*size).double()
    sampled = sampler(mode, padding)(image, identity_grid(*size, dtype=torch.float64))
    torch.testing.assert_close(sampled, image, atol=1e-6, rtol=0)
    # float32 cannot place a sample in a large image better than its pixel coordinate rounds
    rounding = 2**-23 * max(size)
    single = sampler(mode, padding)(image.float(), identity_grid(*size))
    torch.testing.assert_close(single.double(), image, atol=max(1e-6, 2 * rounding), rtol=0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact(mode: Mode, padding: Padding, turns: int) -> None:
    image = random_image(9, 9).double()
    cos, sin = [(0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)][turns - 1]
    # theta turns the region looked at clockwise, so that what is seen turns counter-clockwise
    theta = torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]], dtype=torch.float64)
    sampled = sampler(mode, padding)(image, Affine((9, 9)).double().grid(theta))
    torch.testing.assert_close(sampled, torch.rot90(image, turns, dims=(2, 3)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [2, 3])
def test_flips_are_exact(mode: Mode, axis: int) -> None:
    image = random_image(6, 9).double()
    grid = identity_grid(6, 9, dtype=torch.float64)
    grid[..., 3 - axis] *= -1
    torch.testing.assert_close(Sampler(mode)(image, grid), image.flip(axis), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("down", "right"), [(2, -3), (-1, 1), (0, 4)])
def test_integer_shifts_are_exact(mode: Mode, padding: Padding, down: int, right: int) -> None:
    image = random_image(8, 10).double()
    grid = identity_grid(8, 10, dtype=torch.float64) + torch.tensor([2 * right / 10, 2 * down / 8], dtype=torch.float64)
    expected = _pad_and_shift(image.numpy(), padding, down, right)
    np.testing.assert_allclose(sampler(mode, padding)(image, grid).numpy(), expected, atol=1e-6)


def _pad_and_shift(image: NDArray[np.float64], padding: Padding, down: int, right: int) -> NDArray[np.float64]:
    room = ((0, 0), (0, 0), (5, 5), (5, 5))
    if padding in ("zeros", "fill"):
        padded = np.pad(image, room, constant_values=0.7 if padding == "fill" else 0.0)
    else:
        padded = np.pad(image, room, mode="edge" if padding == "border" else "symmetric")
    return padded[:, :, 5 + down : 13 + down, 5 + right : 15 + right]


def _pixel_points(grid: Tensor, size: tuple[int, ...]) -> list[NDArray[np.float64]]:
    """Pixel coordinates, slowest axis first, of a grid `[1, ..., D]`."""
    coordinates = grid[0].double().numpy()
    return [((coordinates[..., -1 - axis] + 1) * n - 1) / 2 for axis, n in enumerate(size)]


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_bilinear_equals_scipy(padding: Padding) -> None:
    image = random_image(7, 9).double()
    grid = torch.rand(1, 11, 5, 2, generator=torch.Generator().manual_seed(1)).double() * 2.6 - 1.3
    sampled = sampler("bilinear", padding)(image, grid)
    points = _pixel_points(grid, (7, 9))
    for channel in range(2):
        expected = map_coordinates(image[0, channel].numpy(), points, order=1, mode=SCIPY_MODES[padding])
        np.testing.assert_allclose(sampled[0, channel].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("padding", ["zeros", "fill"])
def test_bilinear_fades_to_the_constant_outside(padding: Padding) -> None:
    image = random_image(7, 9).double()
    grid = torch.rand(1, 11, 5, 2, generator=torch.Generator().manual_seed(2)).double() * 2.6 - 1.3
    constant = 0.7 if padding == "fill" else 0.0
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), constant_values=constant)
    points = [axis + 4 for axis in _pixel_points(grid, (7, 9))]
    sampled = sampler("bilinear", padding)(image, grid)
    for channel in range(2):
        expected = map_coordinates(padded[0, channel], points, order=1)
        np.testing.assert_allclose(sampled[0, channel].numpy(), expected, atol=1e-9)


def test_volumes_equal_scipy() -> None:
    volume = random_image(4, 5, 6).double()
    grid = torch.rand(1, 3, 4, 5, 3, generator=torch.Generator().manual_seed(3)).double() * 2.4 - 1.2
    sampled = Sampler()(volume, grid)
    for channel in range(2):
        expected = map_coordinates(volume[0, channel].numpy(), _pixel_points(grid, (4, 5, 6)), order=1, mode="nearest")
        np.testing.assert_allclose(sampled[0, channel].numpy(), expected, atol=1e-9)


def test_bicubic_equals_the_formula() -> None:
    image = random_image(7, 9).double()
    grid = torch.rand(1, 4, 5, 2, generator=torch.Generator().manual_seed(4)).double() * 2.2 - 1.1
    y, x = _pixel_points(grid, (7, 9))
    expected = np.zeros((2, 4, 5))
    for row in range(-3, 11):
        for column in range(-3, 13):
            pixel = image[0, :, np.clip(row, 0, 6), np.clip(column, 0, 8)].numpy()
            expected += pixel[:, None, None] * _cubic(y - row) * _cubic(x - column)
    np.testing.assert_allclose(Sampler("bicubic")(image, grid)[0].numpy(), expected, atol=1e-9)


def _cubic(t: NDArray[np.float64], a: float = -0.75) -> NDArray[np.float64]:
    """Keys 1981."""
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def test_nearest_rounds_halves_up_as_in_the_paper() -> None:
    image = torch.arange(6.0).reshape(1, 1, 1, 6)
    halves = torch.tensor([-0.5, 0.5, 1.5, 2.5, 3.5, 4.5])  # pixel coordinates half way between two elements
    grid = torch.stack([(2 * halves + 1) / 6 - 1, torch.zeros(6)], dim=-1).reshape(1, 1, 6, 2)
    assert Sampler("nearest")(image, grid).flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradients(mode: Mode, padding: Padding) -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    steps = torch.rand(1, 3, 4, 2, dtype=torch.float64, generator=generator) * 0.6 + 0.2  # away from the kinks
    pixels = torch.randint(-1, 5, (1, 3, 4, 2), generator=generator) + steps
    grid = ((2 * pixels + 1) / torch.tensor([6.0, 5.0]) - 1).requires_grad_()
    module = sampler(mode, padding)
    assert torch.autograd.gradcheck(lambda i, g: module(i, g, grid_is_finite=True), (image, grid))


@pytest.mark.parametrize("size", [(6, 5), (3, 6, 5)])
def test_the_gradient_has_the_layout_of_the_images(size: tuple[int, ...]) -> None:
    layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    grid = identity_grid(*size).repeat(2, *([1] * (len(size) + 1))) * 0.7
    planes = torch.randn(2, 4, *size, requires_grad=True)
    pixels = planes.detach().clone(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 4, *size)
    layouts: list[bool] = []
    for images in (planes, pixels):
        # Something before it, for the gradient to go on to: what a leaf gathers has the leaf's own layout anyhow.
        before = images * 2
        before.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=layout)))
        (Sampler()(before, grid) * weights).sum().backward()
    assert layouts == [False, True]
    assert planes.grad is not None
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad, planes.grad, rtol=0, atol=1e-6)


def test_gradient_at_integers_is_the_right_difference() -> None:
    image = torch.tensor([0.0, 1, 4, 9, 16]).reshape(1, 1, 1, 5)
    grid = identity_grid(1, 5).requires_grad_()
    Sampler()(image, grid).sum().backward()
    assert grid.grad is not None
    per_pixel = grid.grad[0, 0, 1:4, 0] * 2 / 5
    torch.testing.assert_close(per_pixel, torch.tensor([3.0, 5, 7]))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_any_grid_gives_finite_output_and_gradients(mode: Mode, padding: Padding) -> None:
    image = random_image(5, 5).requires_grad_()
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -1e20, 0.3])
    grid = torch.cartesian_prod(values, values).reshape(1, 6, 6, 2).requires_grad_()
    sampled = sampler(mode, padding)(image, grid)
    sampled.sum().backward()
    assert sampled.isfinite().all()
    assert image.grad is not None and image.grad.isfinite().all()  # noqa: PT018 - for the type checker
    assert grid.grad is not None and grid.grad.isfinite().all()  # noqa: PT018


CRASH = """
import torch
from torch.nn import functional as F
from training.stn.sampler import finite_grid
grid = torch.full((1, 4, 4, 2), float("nan")).requires_grad_()
image = torch.rand(1, 1, 4, 4, requires_grad=True)
F.grid_sample(image, {grid}, padding_mode="border", align_corners=False).sum().backward()
"""


def test_the_guard_prevents_a_crash_that_torch_has() -> None:
    def exit_code(grid: str) -> int:
        return subprocess.run([sys.executable, "-c", CRASH.format(grid=grid)], check=False).returncode

    assert exit_code("finite_grid(grid)") == 0
    if torch.__version__.startswith("2.13"):
        assert exit_code("grid") < 0  # killed by a signal: this is what the guard is for


def test_supersampling_averages_what_aliasing_would_miss() -> None:
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    for shift in (0.0, 0.5, 1.0):
        grid = identity_grid(32, 32) + torch.tensor([2 * shift / 32, 0.0])
        plain = Sampler("nearest")(stripes, identity_grid(8, 8) + torch.tensor([2 * shift / 32, 0.0]))
        averaged = Sampler(supersample=4)(stripes, grid)
        assert averaged.shape == (1, 1, 8, 8)
        torch.testing.assert_close(averaged[..., :-1], torch.full((1, 1, 8, 7), 0.5), atol=1e-5, rtol=0)
        assert plain.unique().numel() == 1  # all stripes of one colour, or all of the other


def test_half_precision_images_keep_their_dtype() -> None:
    image = random_image(6, 6).bfloat16()
    sampled = Sampler()(image, identity_grid(6, 6))
    assert sampled.dtype == torch.bfloat16
    torch.testing.assert_close(sampled, image)


def test_finite_grid_keeps_finite_coordinates() -> None:
    grid = torch.tensor([0.25, -0.5, float("nan"), float("inf"), 1e9])
    assert finite_grid(grid).tolist() == [0.25, -0.5, 0.0, 0.0, 1e3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "lanczos"}, "mode: expected one of bilinear, nearest, bicubic, got 'lanczos'"),
        ({"padding": "wrap"}, "padding: expected one of"),
        ({"fill": 0.5}, "padding='fill'"),
        ({"padding": "fill", "fill": float("nan")}, "fill"),
        ({"supersample": 0}, "supersample"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampler(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "grid", "words"),
    [
        ((1, 1, 4), (1, 4, 1), "images, grid"),
        ((1, 1, 4, 4), (1, 4, 4, 3), "images, grid"),
        ((1, 1, 4, 4, 4), (1, 4, 4, 2), "images, grid"),
    ],
)
def test_bad_shapes_are_named(image: tuple[int, ...], grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampler()(torch.zeros(image), torch.zeros(grid))


def test_bicubic_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="bicubic"):
        Sampler("bicubic")(torch.zeros(1, 1, 2, 2, 2), torch.zeros(1, 2, 2, 2, 3))
