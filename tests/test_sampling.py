from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stn_serve.poses import Box, control_points
from stn_serve.sampling import LARGEST_STRIP, rectify, rectify_antialiased, region_size

FRAME = Box(0, 0, 300, 200)


def test_a_coarse_crop_averages_what_it_skips() -> None:
    """Fine stripes are gray from afar; sampling alone would show some of them as black or white."""
    stripes = np.tile(np.array([0, 255], np.uint8), (200, 150))[..., None]
    crop = rectify_antialiased(stripes, np.eye(2, 3), FRAME, (20, 30))
    assert crop.shape == (20, 30, 1)
    assert np.abs(crop.astype(int) - 127).max() <= 8
    assert np.ptp(rectify(stripes, np.eye(2, 3), FRAME, (21, 31))) > 200


@pytest.mark.parametrize("factor", [1, 2, 4, 10])
def test_the_whole_image_shrinks_as_pillow_shrinks_it(factor: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    crop = rectify_antialiased(pixels, np.eye(2, 3), FRAME, (200 // factor, 300 // factor))
    np.testing.assert_allclose(crop, np.asarray(Image.fromarray(pixels).reduce(factor)), atol=1)


def test_a_crop_that_is_finer_than_the_image_is_sampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    theta = [[0.1, 0.02, 0.3], [-0.02, 0.1, 0.2]]
    np.testing.assert_array_equal(
        rectify_antialiased(pixels, theta, FRAME, (100, 100)), rectify(pixels, theta, FRAME, (100, 100))
    )


def test_one_side_may_be_coarser_than_the_other() -> None:
    """A ramp along x keeps its values wherever it is averaged."""
    ramp = np.broadcast_to(np.arange(250, dtype=np.uint8), (200, 250))[..., None]
    crop = rectify_antialiased(np.ascontiguousarray(ramp), np.eye(2, 3), Box(0, 0, 250, 200), (10, 125))
    np.testing.assert_allclose(crop[0, :, 0], np.arange(125) * 2 + 0.5, atol=1)


def test_regions_without_end_stay_bounded() -> None:
    pixels = np.zeros((20, 30, 1), np.uint8)
    thetas = [np.full((2, 3), 1e30), np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1e-9]]), np.zeros((2, 3))]
    for theta in thetas:
        assert rectify_antialiased(pixels, theta, Box(0, 0, 30, 20), (4, 4)).shape == (4, 4, 1)


def test_large_crops_are_the_same_in_strips() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    theta, frame = 0.8 * control_points(4), Box(0, 0, 60, 40)
    crop = rectify(pixels, theta, frame, (400, 2 * LARGEST_STRIP // 400))
    middle = rectify(pixels, theta, frame, (400, 2 * LARGEST_STRIP // 400), 1e-12)
    np.testing.assert_allclose(crop.astype(int), middle, atol=1)
    assert crop.shape[0] * crop.shape[1] > LARGEST_STRIP


def test_the_size_of_a_quad() -> None:
    assert region_size(np.array([(0, 0), (30, 0), (30, 20), (10, 20)])) == pytest.approx((np.hypot(10, 20), 30))
