"""Transforms whose theta is a 2x3 matrix: translation, attention, similarity, affine; and the 3x4 of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from math import atanh, isfinite, log, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from training.stn.transform import LARGEST_SCALE, Transform, bounded_scale, target_axis, target_points


class MatrixTransform(Transform):
    """Grid of a matrix theta `[N, D, D + 1]`: every output coordinate times the matrix (paper eq. 1).

    Along a line of the output only x changes, across lines everything else does. So a grid is two small products, theta
    with what happens along a line, and that with what happens across them; no constant is as large as the grid.
    """

    along: Tensor
    across: Tensor

    def __init__(self, output_size: Sequence[int], *, bounded: bool = False) -> None:
        super().__init__(output_size, bounded=bounded)
        self.register_buffer("along", along_lines(self.output_size).float(), persistent=False)
        self.register_buffer("across", across_lines(self.output_size).float(), persistent=False)
        self._keep_identity()

    def grid(self, theta: Tensor) -> Tensor:
        """Two matrix products, already in the sampler's layout.

        About twenty times faster than `F.affine_grid` on a CPU, in torch; in ONNX Runtime two hundred times.
        """
        terms = theta.flatten(1) @ self.along.to(theta.dtype)
        points: Tensor = self.across.to(theta.dtype) @ terms.unflatten(1, (self.dimensions, -1))
        return points.reshape(-1, *self.output_size, self.dimensions)


def along_lines(output_size: Sequence[int]) -> Tensor:
    """The matrix `[D (D + 1), D W D]` from theta, row by row, to D terms of a line of W points of D coordinates.

    The terms are what `across_lines` multiplies: theta's column of each other axis, the same for every point of a line;
    and x times its own column plus the last one.
    """
    x = target_axis(output_size[-1])
    count = len(output_size)
    terms = torch.zeros(count, count + 1, count, len(x), count, dtype=x.dtype)
    for row in range(count):
        for other in range(count - 1):
            terms[row, other + 1, other, :, row] = 1
        terms[row, 0, -1, :, row] = x
        terms[row, -1, -1, :, row] = 1
    return terms.reshape(count * (count + 1), -1)


def across_lines(output_size: Sequence[int]) -> Tensor:
    """What tells L lines apart, `[L, D]`: y (and z), and 1."""
    return F.pad(target_points(output_size[:-1]), (0, 1), value=1.0)


class Translation(MatrixTransform):
    """A crop of fixed size that moves: theta = [[s, 0, tx], [0, s, ty]] with constant s (paper section 4.3).

    Args:
        output_size: height and width of the output.
        scale: s, the crop's size against the image.
        bounded: keep the centre of the crop inside the image through tanh.
    """

    kind = "translation"
    parameter_names = ("tx", "ty")

    def __init__(self, output_size: Sequence[int], *, scale: float = 1.0, bounded: bool = False) -> None:
        super().__init__(output_size, bounded=bounded)
        self.scale = _positive("scale", scale)

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:  # noqa: ARG002 - the scale is fixed
        """Raw parameters that look at the crop around `center`."""
        return _raw_translation(center, self.bounded)

    def theta(self, parameters: Tensor) -> Tensor:
        """[[s, 0, tx], [0, s, ty]]."""
        tx, ty = _translation(parameters, self.bounded).unbind(-1)
        zero, s = torch.zeros_like(tx), torch.full_like(tx, self.scale)
        return _rows((s, zero, tx), (zero, s, ty))


class Attention(MatrixTransform):
    """Isotropic scale and translation: theta = [[s, 0, tx], [0, s, ty]] (paper eq. 2)."""

    kind = "attention"
    parameter_names = ("scale", "tx", "ty")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look at the square of half width `scale` around `center`."""
        return [_raw_scale(scale, self.bounded), *_raw_translation(center, self.bounded)]

    def theta(self, parameters: Tensor) -> Tensor:
        """[[s, 0, tx], [0, s, ty]]."""
        raw = parameters[:, 0]
        s = bounded_scale(raw) if self.bounded else raw
        tx, ty = _translation(parameters[:, 1:], self.bounded).unbind(-1)
        zero = torch.zeros_like(s)
        return _rows((s, zero, tx), (zero, s, ty))


class Similarity(MatrixTransform):
    """Rotation, isotropic scale and translation: theta = [[a, -b, tx], [b, a, ty]].

    Unbounded, the parameters are a, b, tx, ty; bounded, a = s cos(r) and b = s sin(r), the angle r within half a turn.
    """

    kind = "similarity"

    @property
    def parameter_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The raw parameters, in order."""
        return ("log_scale", "rotation", "tx", "ty") if self.bounded else ("a", "b", "tx", "ty")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look, upright, at the square of half width `scale` around `center`."""
        return [_raw_scale(scale, self.bounded), 0.0, *_raw_translation(center, self.bounded)]

    def theta(self, parameters: Tensor) -> Tensor:
        """[[a, -b, tx], [b, a, ty]]."""
        a, b = parameters[:, 0], parameters[:, 1]
        if self.bounded:
            scale, angle = bounded_scale(a), pi * torch.tanh(b)
            a, b = scale * torch.cos(angle), scale * torch.sin(angle)
        tx, ty = _translation(parameters[:, 2:], self.bounded).unbind(-1)
        return _rows((a, -b, tx), (b, a, ty))


class Affine(MatrixTransform):
    """All six entries of theta = [[a, b, tx], [c, d, ty]] (paper eq. 1).

    Bounded, theta = rotation * shear * scale, then translation: each within its range, and never a mirror image.
    """

    kind = "affine"

    @property
    def parameter_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The raw parameters, in order."""
        if self.bounded:
            return ("log_scale_x", "rotation", "tx", "shear", "log_scale_y", "ty")
        return ("a", "b", "tx", "c", "d", "ty")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look, upright, at the square of half width `scale` around `center`."""
        return affine_start(center, scale, self.bounded)

    def theta(self, parameters: Tensor) -> Tensor:
        """[[a, b, tx], [c, d, ty]]."""
        return bounded_affine(parameters) if self.bounded else parameters.reshape(-1, 2, 3)


class Affine3d(MatrixTransform):
    """An affine map of volumes, theta `[N, 3, 4]`, x before y before z (paper appendix A.3).

    Bounded, only the translation is: a volume's rotation has no parametrisation as plain as the plane's.
    """

    kind = "affine_3d"
    dimensions = 3
    parameter_names = ("xx", "xy", "xz", "tx", "yx", "yy", "yz", "ty", "zx", "zy", "zz", "tz")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look, upright, at the cube of half width `scale` around `center` (x, y, z)."""
        theta = torch.eye(3, 4) * _positive("scale", scale)
        theta[:, 3] = torch.tensor(_raw_translation(center, self.bounded))
        return theta.flatten().tolist()

    def theta(self, parameters: Tensor) -> Tensor:
        """The 3x4 matrix."""
        theta = parameters.reshape(-1, 3, 4)
        if not self.bounded:
            return theta
        return torch.cat([theta[..., :3], torch.tanh(theta[..., 3:])], dim=-1)


def affine_start(center: Sequence[float], scale: float, bounded: bool) -> list[float]:
    """Raw parameters, in the order of `Affine.parameter_names`, that look upright at the square around `center`."""
    tx, ty = _raw_translation(center, bounded)
    raw = _raw_scale(scale, bounded)
    return [raw, 0.0, tx, 0.0, raw, ty]


def bounded_affine(raw: Tensor) -> Tensor:
    """Theta `[N, 2, 3]`, rotation * shear * scale and translation, from raw `[N, 6]` as `Affine` names them."""
    sx, sy = bounded_scale(raw[:, 0]), bounded_scale(raw[:, 4])
    angle, shear = pi * torch.tanh(raw[:, 1]), torch.tanh(raw[:, 3])
    tx, ty = torch.tanh(raw[:, 2]), torch.tanh(raw[:, 5])
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _rows((cos * sx, (cos * shear - sin) * sy, tx), (sin * sx, (sin * shear + cos) * sy, ty))


def _rows(*rows: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _translation(raw: Tensor, bounded: bool) -> Tensor:
    return torch.tanh(raw) if bounded else raw


def _raw_translation(center: Sequence[float], bounded: bool) -> list[float]:
    if not all(isfinite(c) and abs(c) < 1 for c in center):
        raise ValueError(f"center: expected normalised coordinates inside (-1, 1), got {tuple(center)}")
    return [atanh(c) if bounded else float(c) for c in center]


def _raw_scale(scale: float, bounded: bool) -> float:
    _positive("scale", scale)
    if not bounded:
        return float(scale)
    if not 1 / LARGEST_SCALE < scale < LARGEST_SCALE:
        raise ValueError(f"scale: a bounded transform reaches {1 / LARGEST_SCALE} to {LARGEST_SCALE}, got {scale}")
    return atanh(log(scale) / log(LARGEST_SCALE))


def _positive(name: str, value: float) -> float:
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive number, got {value}")
    return value
