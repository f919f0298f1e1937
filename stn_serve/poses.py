"""From theta to what a person sees: the source quad in pixels, rotation, scale, and whether it lies inside the image.

Convention:
    A theta maps output (target) to input (source) coordinates, the inverse warp of Jaderberg et al. 2015, eq. 1. Both
    are normalised to [-1, 1] over the edges of the image (`align_corners=False`: -1 is the outer edge of the first
    pixel), x before y before z. The shape tells the kind: `[2, 3]` affine and its special cases, `[3, 3]` projective,
    `[3, 4]` affine in three dimensions, `[K*K, 2]` the source positions of a thin plate spline's control points.
    Leading axes are batch axes. Pixels: (0, 0) is the outer corner of the top left pixel, whose centre is (0.5, 0.5). y
    points down, so that a positive rotation is clockwise as seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SMALLEST_DENOMINATOR = 1e-6
"""A projective denominator nearer to zero is moved here, keeping its sign, as the transformer itself does."""


@dataclass(frozen=True, slots=True)
class Box:
    """The part of the caller's image that the model's input covers, in pixels: edges, not pixel centres."""

    left: float
    top: float
    right: float
    bottom: float

    def to_pixels(self, points: Array) -> Array:
        """Normalised points `[..., 2]` as pixels of the caller's image."""
        origin = np.array([self.left, self.top])
        size = np.array([self.right - self.left, self.bottom - self.top])
        return np.asarray(origin + (points + 1) / 2 * size)


@dataclass(frozen=True, slots=True)
class Pose:
    """A theta as rotation * shear * scale, then translation; at the centre of the output where it is not affine."""

    rotation_degrees: float
    """How far the region looked at is turned, clockwise as seen. In three dimensions about its own axis, >= 0."""
    scale: tuple[float, ...]
    """Size of the region against the image along the output's x, y (and z); the last is negative if it is mirrored."""
    shear: float
    """How far the region's y axis leans along its x axis: tan of the angle. In three dimensions of the x-y plane."""
    translation: tuple[float, ...]
    """Centre of the region, normalised to [-1, 1]."""
    determinant: float
    """Area (volume) of the region against the image's, with its sign."""
    inside_ratio: float
    """Share of the region that lies inside the image."""


def map_points(theta: ArrayLike, points: ArrayLike, regularization: float = 0.0) -> Array:
    """Source positions `[..., N, D]` of target points `[N, D]` or `[..., N, D]`, all normalised.

    Raises:
        ValueError: theta has none of the shapes of this module's convention.
    """
    theta, points = np.asarray(theta, np.float64), np.asarray(points, np.float64)
    rows, columns = theta.shape[-2:]
    if (rows, columns) in ((2, 3), (3, 4)):
        return np.asarray(_homogeneous(points) @ np.swapaxes(theta, -1, -2))
    if (rows, columns) == (3, 3):
        mapped = _homogeneous(points) @ np.swapaxes(theta, -1, -2)
        return np.asarray(mapped[..., :2] / _away_from_zero(mapped[..., 2:]))
    if columns == 2 and isqrt(rows) ** 2 == rows >= 4:
        basis = thin_plate_spline_basis(points, control_points(isqrt(rows)), regularization)
        return np.asarray(basis @ theta)
    raise ValueError(f"theta has shape {theta.shape}, expected [..., 2, 3], [..., 3, 3], [..., 3, 4] or [..., K*K, 2]")


def source_quad(theta: ArrayLike, frame: Box, regularization: float = 0.0) -> Array:
    """The output's corners on the caller's image, `[..., 4, 2]` in pixels, clockwise from the top left."""
    return frame.to_pixels(map_points(theta, _outline(1), regularization))


def source_outline(theta: ArrayLike, frame: Box, regularization: float = 0.0) -> Array:
    """The output's outline on the caller's image `[..., N, 2]` in pixels, clockwise from the top left.

    N is 4 for the maps that keep lines straight, 32 for a thin plate spline.
    """
    columns = np.shape(theta)[-1]
    return frame.to_pixels(map_points(theta, _outline(8 if columns == 2 else 1), regularization))


def compose(outer: ArrayLike, inner: ArrayLike, regularization: float = 0.0) -> Array:
    """The map `x -> outer(inner(x))`: `inner` samples what `outer` has sampled, the result samples the original image.

    A matrix with a matrix is exact; the result is projective if either is. A thin plate spline on either side gives the
    spline whose control points take that way: exact at the control points, an approximation between them.
    """
    outer, inner = np.asarray(outer, np.float64), np.asarray(inner, np.float64)
    if inner.shape[-1] == 2:
        return map_points(outer, inner, regularization)
    if outer.shape[-1] == 2:
        return map_points(outer, map_points(inner, control_points(isqrt(outer.shape[-2]))), regularization)
    product = _square(outer) @ _square(inner)
    return product if 3 in (outer.shape[-2], inner.shape[-2]) and product.shape[-1] == 3 else product[..., :-1, :]


def inverse(theta: ArrayLike) -> Array:
    """The map from input to output coordinates, of the same kind.

    Raises:
        ValueError: theta is a thin plate spline, which has no inverse in closed form, or singular.
    """
    theta = np.asarray(theta, np.float64)
    if theta.shape[-1] == 2:
        raise ValueError("a thin plate spline has no inverse in closed form")
    try:
        inverted = np.linalg.inv(_square(theta))
    except np.linalg.LinAlgError as error:
        raise ValueError("theta is singular: it maps the whole output onto a line or a point") from error
    return np.asarray(inverted if theta.shape[-2:] == (3, 3) else inverted[..., :-1, :])


def pose(theta: ArrayLike, frame: Box, regularization: float = 0.0) -> Pose:
    """Take one theta apart (`[rows, columns]`, no batch axis).

    `frame` gives the input's width and height in pixels, so that a rotation is one on the image as seen.
    """
    theta = np.asarray(theta, np.float64)
    linear, centre = _linearise(theta, regularization)
    size = np.ones(len(centre))
    size[:2] = frame.right - frame.left, frame.bottom - frame.top
    linear = linear * size[:, None] / size
    rotation, triangular = np.linalg.qr(linear)
    signs = np.where(np.diag(triangular) < 0, -1.0, 1.0)
    rotation, triangular = rotation * signs, triangular * signs[:, None]
    if np.linalg.det(rotation) < 0:  # a mirror image: the last axis takes the sign, what remains is a rotation
        rotation[:, -1] *= -1
        triangular[-1] *= -1
    scale = np.diag(triangular)
    return Pose(
        rotation_degrees=_angle(rotation),
        scale=tuple(scale.tolist()),
        shear=float(triangular[0, 1] / scale[1]) if scale[1] else 0.0,
        translation=tuple(centre.tolist()),
        determinant=float(np.linalg.det(linear)),
        inside_ratio=_inside_ratio(theta, len(centre), regularization),
    )


@lru_cache(maxsize=8)
def control_points(size: int) -> Array:
    """Target control points of a thin plate spline, `[size * size, 2]`: regular on [-1, 1]^2, row by row."""
    return _lattice(np.linspace(-1, 1, size), 2)


def thin_plate_spline_basis(points: Array, controls: Array, regularization: float = 0.0) -> Array:
    """The matrix B `[..., N, P]` with `source = B @ theta`; theta holds the source positions `[P, 2]` of `controls`.

    Bookstein 1989: `f(x) = a + A x + sum_i w_i U(|x - c_i|)`, `U(r) = r^2 log r^2`, the weights orthogonal to affine
    maps. The system is linear in theta and the control points never move, so one matrix holds all of it.
    """
    count = len(controls)
    system = np.zeros((count + 3, count + 3))
    system[:count, :count] = _radial(controls, controls) + regularization * np.eye(count)
    system[:count, count:] = _affine_terms(controls)
    system[count:, :count] = _affine_terms(controls).T
    weights = np.linalg.inv(system)[:, :count]
    return np.asarray(np.concatenate([_radial(points, controls), _affine_terms(points)], axis=-1) @ weights)


def _radial(points: Array, centres: Array) -> Array:
    squared = ((points[..., :, None, :] - centres) ** 2).sum(-1)
    return np.asarray(squared * np.log(np.where(squared == 0, 1, squared)))


def _affine_terms(points: Array) -> Array:
    return np.concatenate([np.ones((*points.shape[:-1], 1)), points], axis=-1)


def _homogeneous(points: Array) -> Array:
    return np.concatenate([points, np.ones((*points.shape[:-1], 1))], axis=-1)


def _away_from_zero(denominator: Array) -> Array:
    tiny = np.abs(denominator) < SMALLEST_DENOMINATOR
    return np.where(tiny, np.where(denominator < 0, -SMALLEST_DENOMINATOR, SMALLEST_DENOMINATOR), denominator)


def _square(theta: Array) -> Array:
    rows, columns = theta.shape[-2:]
    if rows == columns:
        return theta
    last = np.broadcast_to(np.eye(columns)[-1:], (*theta.shape[:-2], 1, columns))
    return np.concatenate([theta, last], axis=-2)


@lru_cache(maxsize=8)
def _outline(segments: int) -> Array:
    side = np.linspace(-1, 1, segments, endpoint=False)
    ones = np.ones_like(side)
    edges = [(side, -ones), (ones, side), (-side, ones), (-ones, -side)]
    return np.concatenate([np.stack(edge, axis=-1) for edge in edges])


def _lattice(axis: Array, dimensions: int) -> Array:
    """Points `[len(axis) ** dimensions, dimensions]`, x fastest."""
    coordinates = np.meshgrid(*[axis] * dimensions, indexing="ij")
    return np.stack([c.ravel() for c in reversed(coordinates)], axis=-1)


def _linearise(theta: Array, regularization: float) -> tuple[Array, Array]:
    """The linear part `[D, D]` and the image of the centre `[D]`."""
    rows, columns = theta.shape
    centre = map_points(theta, np.zeros((1, 3 if columns == 4 else 2)), regularization)[0]
    if columns == 2:
        targets = _homogeneous(control_points(isqrt(rows)))
        return np.asarray(np.linalg.lstsq(targets, theta, rcond=None)[0][:2].T), centre
    if (rows, columns) == (3, 3):
        jacobian = theta[:2, :2] - np.outer(centre, theta[2, :2])
        return jacobian / _away_from_zero(theta[2:, 2:]), centre
    return theta[:, :-1], centre


def _angle(rotation: Array) -> float:
    if len(rotation) == 2:
        return float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))) + 0.0  # no minus before a zero
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def _inside_ratio(theta: Array, dimensions: int, regularization: float) -> float:
    if theta.shape[1] == 2:
        mapped = _probe_basis(isqrt(len(theta)), regularization) @ theta
    else:
        mapped = map_points(theta, _probes(dimensions))
    return float((np.abs(mapped) <= 1).all(axis=-1).mean())


@lru_cache(maxsize=2)
def _probes(dimensions: int) -> Array:
    """Points spread evenly over the output."""
    side = 32 if dimensions == 2 else 16
    return _lattice((np.arange(side) + 0.5) / side * 2 - 1, dimensions)


@lru_cache(maxsize=8)
def _probe_basis(size: int, regularization: float) -> Array:
    return thin_plate_spline_basis(_probes(2), control_points(size), regularization)
