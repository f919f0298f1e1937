"""The distorted digits: what each set may do, and that it does no more."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import rotate
from torch import Tensor

from training.config import load_recipe
from training.data.digits import DigitsData
from training.data.distortions import Distorter, Distortion, homography, perspective, placement, strew_clutter

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(count: int = 1) -> Tensor:
    """A smooth spot away from the centre, so that every map shows."""
    y, x = np.mgrid[:28, :28]
    spot = np.exp(-((x - 17) ** 2 + (y - 11) ** 2) / 12)
    return torch.tensor(spot, dtype=torch.float32).expand(count, 1, 28, 28)


def distort(distortion: Distortion, images: Tensor, seed: int = 0) -> Tensor:
    others = torch.full((4, 28, 28), 255, dtype=torch.uint8)
    return Distorter(distortion, CPU)(images, others, generator(seed))


def test_nothing_asked_is_nothing_done() -> None:
    torch.testing.assert_close(distort(Distortion(), blob(2)), blob(2), atol=1e-5, rtol=0)


def test_same_seed_same_images() -> None:
    everything = Distortion(canvas=42, rotation_degrees=45, scale=(0.7, 1.2), translate=True, clutter=3)
    assert torch.equal(distort(everything, blob(8)), distort(everything, blob(8)))
    assert not torch.equal(distort(everything, blob(8)), distort(everything, blob(8), seed=1))


def test_rotation_equals_scipy() -> None:
    distortion = Distortion(rotation_degrees=90)
    theta = placement(distortion, 6, generator())
    images = distort(distortion, blob(6))
    for matrix, image in zip(theta, images[:, 0].numpy(), strict=True):
        degrees = float(torch.rad2deg(torch.atan2(matrix[0, 1], matrix[0, 0])))
        assert abs(degrees) <= 90
        expected = rotate(blob()[0, 0].numpy(), -degrees, reshape=False, order=1)
        np.testing.assert_allclose(image, expected, atol=0.02)


def test_placement_keeps_the_whole_digit_on_the_canvas() -> None:
    distortion = Distortion(canvas=42, scale=(0.7, 1.2), translate=True)
    theta = placement(distortion, 2000, generator()).numpy()
    scale = 42 / 28 / theta[:, 0, 0]
    centre = -theta[:, :, 2] / theta[:, 0, :1]  # where the digit's centre lies on the canvas
    edges = np.abs(centre) * 21 + 14 * scale[:, None]
    assert edges.max() <= 21 + 1e-4
    assert scale.min() >= 0.7 - 1e-6
    assert scale.max() <= 1.2 + 1e-6
    assert np.ptp(scale) > 0.45
    assert edges.max() > 20.9  # and makes use of the room


def test_mass_scales_with_the_digit() -> None:
    distortion = Distortion(canvas=42, scale=(0.8, 0.8), translate=True)
    mass = distort(distortion, blob(50)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(mass, torch.full_like(mass, float(blob().sum()) * 0.8**2), rtol=0.02, atol=0)


def test_homography_equals_opencv() -> None:
    torch.manual_seed(0)
    sources = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]) + 0.3 * torch.randn(5, 4, 2)
    targets = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]).expand(5, 4, 2)
    for matrix, source, target in zip(homography(sources, targets), sources.numpy(), targets.numpy(), strict=True):
        np.testing.assert_allclose(matrix.numpy(), cv2.getPerspectiveTransform(source, target), atol=1e-4)


def test_corner_noise_is_in_pixels_of_the_canvas() -> None:
    distortion = Distortion(corner_noise_px=2.0)
    theta = placement(distortion, 4000, generator())
    moved = torch.linalg.inv(perspective(distortion, theta, generator())) @ torch.tensor([-1.0, -1, 1])
    pixels = (moved[:, :2] / moved[:, 2:] + 1) * 14
    torch.testing.assert_close(pixels.std(dim=0), torch.full((2,), 2.0), rtol=0.05, atol=0)
    torch.testing.assert_close(pixels.mean(dim=0), torch.zeros(2), rtol=0, atol=0.1)


def test_spline_noise_bends_without_tearing() -> None:
    images = distort(Distortion(spline_noise_px=1.5), blob(200))
    centre = (images[:, 0] * torch.arange(28.0)).sum(dim=(1, 2)) / images.sum(dim=(1, 2, 3))
    assert abs(float(centre.mean()) - 17) < 0.3
    assert 0.7 < float(centre.std()) < 2.5


def test_clutter_lays_the_patches_asked_for() -> None:
    others = torch.full((3, 28, 28), 255, dtype=torch.uint8)
    cluttered = strew_clutter(torch.zeros(100, 1, 60, 60), others, 6, generator())
    lit = (cluttered == 1).sum(dim=(1, 2, 3))
    assert int(lit.max()) <= 6 * 36
    assert float(lit.float().mean()) > 5 * 36  # some overlap
    assert set(cluttered.unique().tolist()) == {0.0, 1.0}


def test_clutter_never_darkens() -> None:
    images = blob(20)
    dark = torch.zeros(3, 28, 28, dtype=torch.uint8)
    assert torch.equal(strew_clutter(images, dark, 6, generator()), images)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scale": (1.2, 0.7)}, "scale"),
        ({"translate": True, "scale": (1.0, 1.6), "canvas": 42}, "canvas"),
        ({"corner_noise_px": 5.0, "spline_noise_px": 1.5}, "not both"),
    ],
)
def test_contradictions_are_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Distortion(**fields)  # type: ignore[arg-type]


def test_recipes_are_the_papers_sets() -> None:
    sets = {}
    for name in ("r", "rts", "p", "e", "tc"):
        data = load_recipe(f"digits_{name}").data
        assert isinstance(data, DigitsData)
        sets[name] = data.distortion
    assert sets["r"] == Distortion(rotation_degrees=90)
    assert sets["rts"] == Distortion(canvas=42, rotation_degrees=45, scale=(0.7, 1.2), translate=True)
    assert sets["p"] == Distortion(scale=(0.75, 1.0), corner_noise_px=3)
    assert sets["e"] == Distortion(scale=(0.75, 1.0), spline_noise_px=1.5)
    assert sets["tc"] == Distortion(canvas=60, translate=True, clutter=6)
