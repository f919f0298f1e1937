from __future__ import annotations

from math import cos, radians, sin

import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.interpolate import RBFInterpolator

from stn_serve.poses import (
    Array,
    Box,
    compose,
    control_points,
    inverse,
    map_points,
    pose,
    source_outline,
    source_quad,
)

UNIT = Box(0, 0, 2, 2)
CORNERS = np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)])
POINTS = np.random.default_rng(0).uniform(-1.2, 1.2, (50, 2))

numbers = st.floats(-2, 2, width=32)
affines = hnp.arrays(np.float64, (2, 3), elements=numbers)
angles = st.floats(-179, 179)
scales = st.floats(0.1, 3)


def rotation(degrees: float) -> Array:
    return np.array([[cos(radians(degrees)), -sin(radians(degrees))], [sin(radians(degrees)), cos(radians(degrees))]])


def affine(linear: Array, translation: tuple[float, ...] = (0.0, 0.0)) -> Array:
    return np.column_stack([linear, translation])


def projective(seed: int) -> Array:
    """A moderate one: its denominator stays well above zero on the image."""
    noise = np.random.default_rng(seed).uniform(-0.3, 0.3, (3, 3))
    noise[2, 2] = 0
    return np.eye(3) + noise


def spline(seed: int, size: int = 4) -> Array:
    return control_points(size) + 0.1 * np.random.default_rng(seed).standard_normal((size * size, 2))


def test_pixels_are_edges_not_centres() -> None:
    box = Box(10, 20, 50, 100)
    assert box.to_pixels(np.array([(-1.0, -1.0), (0, 0), (1, 1)])).tolist() == [[10, 20], [30, 60], [50, 100]]


def test_affine_maps_x_before_y() -> None:
    theta = [[0.5, 0, 0.25], [0, 2, -0.5]]
    assert map_points(theta, [[1.0, 1.0], [0.0, 0.0]]).tolist() == [[0.75, 1.5], [0.25, -0.5]]


def test_a_crop_agrees_with_warp_affine() -> None:
    """The pixels under the quad of an axis-parallel theta are the pixels that OpenCV cuts out."""
    image = np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)
    theta = np.array([[0.5, 0, 0.2], [0, 0.25, -0.4]])
    quad = source_quad(theta, Box(0, 0, 60, 40))
    assert np.round(quad, 9).tolist() == [[21, 7], [51, 7], [51, 17], [21, 17]]
    # OpenCV counts from pixel centres: half a pixel less on either side.
    to_source = cv2.getAffineTransform(
        np.array([[-0.5, -0.5], [29.5, -0.5], [-0.5, 9.5]], np.float32), (quad[[0, 1, 3]] - 0.5).astype(np.float32)
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    np.testing.assert_array_equal(cv2.warpAffine(image, to_source, (30, 10), flags=flags), image[7:17, 21:51])


@given(theta=affines)
def test_affine_agrees_with_opencv(theta: Array) -> None:
    expected = cv2.transform(POINTS[None], theta)[0]
    np.testing.assert_allclose(map_points(theta, POINTS), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_projective_agrees_with_opencv(seed: int) -> None:
    theta = projective(seed)
    np.testing.assert_allclose(map_points(theta, POINTS), cv2.perspectiveTransform(POINTS[None], theta)[0], atol=1e-12)
    through_corners = cv2.getPerspectiveTransform(
        CORNERS.astype(np.float32), map_points(theta, CORNERS).astype(np.float32)
    )
    np.testing.assert_allclose(through_corners, theta / theta[2, 2], atol=1e-5)


def test_projective_stays_finite_where_its_denominator_is_zero() -> None:
    theta = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    mapped = map_points(theta, [[-1.0, 0.5], [-1 - 1e-9, 0.5]])
    assert np.all(np.isfinite(mapped))
    assert mapped[0, 1] == pytest.approx(0.5e6)
    assert mapped[1, 1] == pytest.approx(-0.5e6)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.parametrize("regularization", [0.0, 0.1])
def test_thin_plate_spline_agrees_with_scipy(size: int, regularization: float) -> None:
    theta = spline(size, size)
    # scipy's kernel is r^2 log r, half of ours, so its smoothing is half as well.
    reference = RBFInterpolator(
        control_points(size), theta, kernel="thin_plate_spline", degree=1, smoothing=regularization / 2
    )
    np.testing.assert_allclose(map_points(theta, POINTS, regularization), reference(POINTS), atol=1e-9)


def test_thin_plate_spline_meets_its_control_points() -> None:
    theta = spline(1)
    np.testing.assert_allclose(map_points(theta, control_points(4)), theta, atol=1e-12)


def test_control_points_go_row_by_row() -> None:
    assert control_points(2).tolist() == [[-1, -1], [1, -1], [-1, 1], [1, 1]]


@given(theta=affines)
def test_a_thin_plate_spline_can_be_affine(theta: Array) -> None:
    controls = map_points(theta, control_points(4))
    np.testing.assert_allclose(map_points(controls, POINTS), map_points(theta, POINTS), atol=1e-9)


@pytest.mark.parametrize("theta", [np.zeros((2, 4)), np.zeros((3, 2)), np.zeros((4, 4)), np.zeros((1, 2))])
def test_other_shapes_are_refused(theta: Array) -> None:
    with pytest.raises(ValueError, match=r"theta has shape .*expected"):
        map_points(theta, POINTS)


def test_batches_of_thetas() -> None:
    for thetas in (
        np.stack([affine(rotation(10)), affine(rotation(70))])[:, None],
        np.stack([projective(0), projective(1)])[:, None],
        np.stack([spline(0), spline(1)])[:, None],
    ):
        quads = source_quad(thetas, Box(0, 0, 30, 20))
        assert quads.shape == (2, 1, 4, 2)
        for theta, quad in zip(thetas[:, 0], quads[:, 0], strict=True):
            np.testing.assert_allclose(quad, source_quad(theta, Box(0, 0, 30, 20)))


def test_the_identity_looks_at_the_frame() -> None:
    frame = Box(4, 0, 20, 16)
    corners = [[4, 0], [20, 0], [20, 16], [4, 16]]
    for theta in (np.eye(2, 3), np.eye(3), control_points(4)):
        np.testing.assert_allclose(source_quad(theta, frame), corners, atol=1e-9)
        found = pose(theta, frame)
        assert found.rotation_degrees == pytest.approx(0, abs=1e-9)
        assert found.scale == pytest.approx((1, 1))
        assert found.inside_ratio == 1


def test_outlines_go_clockwise_from_the_top_left() -> None:
    frame = Box(0, 0, 10, 10)
    np.testing.assert_allclose(source_outline(np.eye(2, 3), frame), source_quad(np.eye(2, 3), frame))
    outline = source_outline(control_points(4), frame)
    assert outline.shape == (32, 2)
    np.testing.assert_allclose(outline[::8], source_quad(control_points(4), frame), atol=1e-9)
    np.testing.assert_allclose(outline[:8, 1], 0, atol=1e-9)
    assert np.all(np.diff(outline[:9, 0]) > 0)


@given(outer=affines, inner=affines)
def test_composition_is_one_map_after_the_other(outer: Array, inner: Array) -> None:
    composed = compose(outer, inner)
    assert composed.shape == (2, 3)
    np.testing.assert_allclose(map_points(composed, POINTS), map_points(outer, map_points(inner, POINTS)), atol=1e-9)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (projective(0), projective(1)),
        (projective(0), affine(rotation(20))),
        (affine(rotation(20)), projective(0)),
        (affine(rotation(20)), spline(0)),
    ],
    ids=["projective-projective", "projective-affine", "affine-projective", "affine-spline"],
)
def test_mixed_compositions_are_exact(outer: Array, inner: Array) -> None:
    expected = map_points(outer, map_points(inner, POINTS))
    np.testing.assert_allclose(map_points(compose(outer, inner), POINTS), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [(spline(0), affine(0.5 * rotation(20))), (spline(0), spline(1)), (projective(0), spline(1))],
    ids=["spline-affine", "spline-spline", "projective-spline"],
)
def test_compositions_with_splines_are_exact_at_the_control_points(outer: Array, inner: Array) -> None:
    expected = map_points(outer, map_points(inner, control_points(4)))
    np.testing.assert_allclose(map_points(compose(outer, inner), control_points(4)), expected, atol=1e-9)


def test_a_regularized_spline_composes_with_its_regularization() -> None:
    inner = affine(0.5 * rotation(20))
    composed = compose(spline(0), inner, 0.1)
    np.testing.assert_allclose(composed, map_points(spline(0), map_points(inner, control_points(4)), 0.1), atol=1e-9)


@given(theta=affines)
def test_the_inverse_leads_back(theta: Array) -> None:
    assume(abs(np.linalg.det(theta[:, :2])) > 0.01)
    np.testing.assert_allclose(map_points(inverse(theta), map_points(theta, POINTS)), POINTS, atol=1e-6)
    np.testing.assert_allclose(compose(theta, inverse(theta)), np.eye(2, 3), atol=1e-6)


def test_inverses_of_other_kinds() -> None:
    np.testing.assert_allclose(map_points(inverse(projective(0)), map_points(projective(0), POINTS)), POINTS, atol=1e-9)
    volume = affine(np.diag([1.0, 2, 4]), (1.0, 2, 3))
    np.testing.assert_allclose(compose(volume, inverse(volume)), np.eye(3, 4), atol=1e-12)


def test_what_has_no_inverse() -> None:
    with pytest.raises(ValueError, match="thin plate spline has no inverse"):
        inverse(spline(0))
    with pytest.raises(ValueError, match="singular"):
        inverse(np.zeros((2, 3)))


def test_a_positive_rotation_is_clockwise_as_seen() -> None:
    """The quad's top left corner of a region turned by +90 degrees lies at the image's top right."""
    theta = affine(rotation(90))
    assert np.round(source_quad(theta, Box(0, 0, 10, 10))[0], 9).tolist() == [10, 0]
    assert pose(theta, UNIT).rotation_degrees == pytest.approx(90)
    assert str(pose(0.5 * np.eye(2, 3), UNIT).rotation_degrees) == "0.0"


@given(degrees=angles, shear=st.floats(-1, 1), x_scale=scales, y_scale=scales, mirrored=st.booleans())
def test_poses_take_apart_what_was_put_together(
    degrees: float, shear: float, x_scale: float, y_scale: float, mirrored: bool
) -> None:
    scale = np.diag([x_scale, -y_scale if mirrored else y_scale])
    linear = rotation(degrees) @ np.array([[1, shear], [0, 1]]) @ scale
    found = pose(affine(linear, (0.1, -0.2)), UNIT)
    assert found.rotation_degrees == pytest.approx(degrees, abs=1e-6)
    assert found.scale == pytest.approx((x_scale, scale[1, 1]))
    assert found.shear == pytest.approx(shear, abs=1e-9)
    assert found.translation == pytest.approx((0.1, -0.2))
    assert found.determinant == pytest.approx(x_scale * scale[1, 1])


@given(theta=affines, width=st.integers(1, 100), height=st.integers(1, 100))
def test_a_pose_recomposes_to_the_region_in_pixels(theta: Array, width: int, height: int) -> None:
    frame = Box(0, 0, width, height)
    found = pose(theta, frame)
    assume(min(map(abs, found.scale)) > 1e-3)
    linear = rotation(found.rotation_degrees) @ np.array([[1, found.shear], [0, 1]]) @ np.diag(found.scale)
    half = np.array([width, height]) / 2
    centre = half * (1 + np.array(found.translation))
    expected = centre + (CORNERS * half) @ linear.T
    np.testing.assert_allclose(source_quad(theta, frame), expected, atol=1e-6)


def test_rotations_are_those_seen_on_a_wide_image() -> None:
    """A turn by 30 degrees in pixels is no rotation matrix in normalised coordinates of a 200 x 100 image."""
    stretch = np.diag([200.0, 100])
    theta = affine(np.linalg.inv(stretch) @ (0.5 * rotation(30)) @ stretch)
    found = pose(theta, Box(0, 0, 200, 100))
    assert found.rotation_degrees == pytest.approx(30)
    assert found.scale == pytest.approx((0.5, 0.5))
    assert found.shear == pytest.approx(0, abs=1e-12)


def test_the_pose_of_a_projective_map_is_that_at_its_centre() -> None:
    theta = projective(3)
    step = 1e-6
    centre, right, below = map_points(theta, [[0.0, 0.0], [step, 0.0], [0.0, step]])
    numeric = affine(np.stack([right - centre, below - centre], axis=1) / step, tuple(centre))
    found, expected = pose(theta, UNIT), pose(numeric, UNIT)
    assert found.rotation_degrees == pytest.approx(expected.rotation_degrees, abs=1e-3)
    assert found.scale == pytest.approx(expected.scale, abs=1e-4)
    assert found.translation == pytest.approx(expected.translation)


def test_the_pose_of_a_spline_is_that_of_its_affine_part() -> None:
    theta = map_points(affine(0.5 * rotation(25), (0.2, 0.1)), control_points(4))
    found = pose(theta, UNIT)
    assert found.rotation_degrees == pytest.approx(25)
    assert found.scale == pytest.approx((0.5, 0.5))
    assert found.translation == pytest.approx((0.2, 0.1))


def test_poses_in_three_dimensions() -> None:
    turn = np.eye(3)
    turn[:2, :2] = rotation(40)
    theta = np.column_stack([turn @ np.diag([0.5, 0.6, 0.7]), [0.1, 0.2, 0.3]])
    found = pose(theta, UNIT)
    assert found.rotation_degrees == pytest.approx(40)
    assert found.scale == pytest.approx((0.5, 0.6, 0.7))
    assert found.translation == pytest.approx((0.1, 0.2, 0.3))
    assert found.inside_ratio > 0.9
    np.testing.assert_allclose(map_points(theta, np.zeros((1, 3))), [[0.1, 0.2, 0.3]])


def test_a_collapsed_theta_has_a_pose() -> None:
    found = pose(np.zeros((2, 3)), UNIT)
    assert max(found.scale) == 0
    assert found.determinant == 0
    assert found.inside_ratio == 1


@pytest.mark.parametrize(
    ("theta", "ratio"),
    [
        (affine(np.eye(2)), 1.0),
        (affine(np.eye(2), (1.0, 0.0)), 0.5),
        (affine(np.eye(2), (1.0, 1.0)), 0.25),
        (affine(2 * np.eye(2)), 0.25),
        (affine(np.eye(2), (2.5, 0.0)), 0.0),
        (affine(0.5 * rotation(45)), 1.0),
    ],
)
def test_inside_ratio(theta: Array, ratio: float) -> None:
    assert pose(theta, UNIT).inside_ratio == pytest.approx(ratio)


def test_inside_ratio_of_a_turned_square() -> None:
    """A square turned by 45 degrees shares a regular octagon with itself: 2 (sqrt 2 - 1) of its area."""
    assert pose(affine(rotation(45)), UNIT).inside_ratio == pytest.approx(2 * (2**0.5 - 1), abs=0.02)
