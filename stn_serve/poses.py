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
from typing import NamedTuple

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


class Poses(NamedTuple):
    """The fields of `Pose` for N thetas: scale and translation `[N, D]`, the others `[N]`."""

    rotation_degrees: Array
    scale: Array
    shear: Array
    translation: Array
    determinant: Array
    inside_ratio: Array


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
    one = poses(np.asarray(theta, np.float64)[None], frame, regularization)
    return Pose(
        rotation_degrees=float(one.rotation_degrees[0]),
        scale=tuple(one.scale[0].tolist()),
        shear=float(one.shear[0]),
        translation=tuple(one.translation[0].tolist()),
        determinant=float(one.determinant[0]),
        inside_ratio=float(one.inside_ratio[0]),
    )


def poses(thetas: ArrayLike, frame: Box, regularization: float = 0.0) -> Poses:
    """Take many thetas `[N, rows, columns]` apart at once, as `pose` does."""
    thetas = np.asarray(thetas, np.float64)
    linear, centres = _linearise(thetas, regularization)
    size = np.ones(centres.shape[1])
    size[:2] = frame.right - frame.left, frame.bottom - frame.top
    linear = linear * size[:, None] / size
    rotation, triangular = np.linalg.qr(linear)
    signs = np.where(np.diagonal(triangular, axis1=1, axis2=2) < 0, -1.0, 1.0)
    rotation, triangular = rotation * signs[:, None, :], triangular * signs[:, :, None]
    mirrored = np.linalg.det(rotation) < 0  # the last axis takes the sign, what remains is a rotation
    rotation[mirrored, :, -1] *= -1
    triangular[mirrored, -1] *= -1
    scale = np.diagonal(triangular, axis1=1, axis2=2)
    lean = triangular[:, 0, 1]
    return Poses(
        rotation_degrees=_angles(rotation),
        scale=scale,
        shear=np.divide(lean, scale[:, 1], out=np.zeros_like(lean), where=scale[:, 1] != 0),
        translation=centres,
        determinant=np.linalg.det(linear),
        inside_ratio=_inside_ratios(thetas, centres.shape[1], regularization),
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


def _linearise(thetas: Array, regularization: float) -> tuple[Array, Array]:
    """The linear parts `[N, D, D]` and the images of the centre `[N, D]`."""
    rows, columns = thetas.shape[1:]
    centres = map_points(thetas, np.zeros((1, 3 if columns == 4 else 2)), regularization)[:, 0]
    if columns == 2:
        return np.swapaxes((_affine_fit(isqrt(rows)) @ thetas)[:, :2], 1, 2), centres
    if (rows, columns) == (3, 3):
        jacobians = thetas[:, :2, :2] - centres[:, :, None] * thetas[:, 2:, :2]
        return jacobians / _away_from_zero(thetas[:, 2:, 2:]), centres
    return thetas[:, :, :-1], centres


@lru_cache(maxsize=8)
def _affine_fit(size: int) -> Array:
    """The matrix `[3, P]` that turns a spline's source points into the affine map nearest to them, transposed."""
    return np.asarray(np.linalg.pinv(_homogeneous(control_points(size))))


def _angles(rotations: Array) -> Array:
    if rotations.shape[-1] == 2:
        return np.degrees(np.arctan2(rotations[:, 1, 0], rotations[:, 0, 0])) + 0.0  # no minus before a zero
    traces = np.trace(rotations, axis1=1, axis2=2)
    return np.asarray(np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1))))


def _inside_ratios(thetas: Array, dimensions: int, regularization: float) -> Array:
    # As map_points, but with the points last: their coordinates one after the other are much faster to compare.
    rows, columns = thetas.shape[1:]
    if columns == 2:
        mapped = np.swapaxes(thetas, 1, 2) @ _probe_basis(isqrt(rows), regularization)
    else:
        mapped = thetas @ _probe_columns(dimensions)
    if rows == columns == 3:
        mapped = mapped[:, :2] / _away_from_zero(mapped[:, 2:])
    inside = np.logical_and.reduce(np.abs(mapped, out=mapped) <= 1, axis=1)
    return np.asarray(np.count_nonzero(inside, axis=1) / inside.shape[1])


@lru_cache(maxsize=2)
def _probes(dimensions: int) -> Array:
    """Points spread evenly over the output."""
    side = 32 if dimensions == 2 else 16
    return _lattice((np.arange(side) + 0.5) / side * 2 - 1, dimensions)


@lru_cache(maxsize=2)
def _probe_columns(dimensions: int) -> Array:
    return np.ascontiguousarray(_homogeneous(_probes(dimensions)).T)


@lru_cache(maxsize=8)
def _probe_basis(size: int, regularization: float) -> Array:
    return np.ascontiguousarray(thin_plate_spline_basis(_probes(2), control_points(size), regularization).T)
