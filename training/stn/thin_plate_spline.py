"""The thin plate spline: the smoothest warp through K x K control points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training.stn.transform import Transform, target_points


class ThinPlateSpline(Transform):
    """Theta `[N, K * K, 2]` holds the source positions of a K x K target grid (paper section 3.2; Bookstein 1989).

    The target control points never move, so that solving the spline's linear system is one constant matrix, computed
    once in float64: grid = basis @ theta. Nothing is inverted at run time, and coinciding points do no harm.

    Args:
        output_size: height and width of the output.
        control_size: K; 4 gives the paper's 16 control points.
        regularization: 0 interpolates the control points; larger values let the warp bend less and miss them.
        bounded: move each point by at most the distance between two of them.
    """

    kind = "thin_plate_spline"
    basis: Tensor
    controls: Tensor

    def __init__(
        self,
        output_size: Sequence[int],
        *,
        control_size: int = 4,
        regularization: float = 0.0,
        bounded: bool = False,
    ) -> None:
        super().__init__(output_size, bounded=bounded)
        if not isinstance(control_size, int) or control_size < 2:
            raise ValueError(f"control_size: a spline needs 2 x 2 control points or more, got {control_size}")
        if not 0 <= regularization < float("inf"):
            raise ValueError(f"regularization: expected a finite number >= 0, got {regularization}")
        self.control_size = control_size
        self.regularization = regularization
        controls = control_points(control_size)
        targets = target_points(self.output_size)
        self.register_buffer("controls", controls.float(), persistent=False)
        self.register_buffer("basis", spline_basis(targets, controls, regularization).float(), persistent=False)
        self._keep_identity()

    @property
    def parameter_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The coordinates of every control point, row by row."""
        return tuple(f"{axis}{point}" for point in range(self.control_size**2) for axis in "xy")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look at the square of half width `scale` around `center`.

        Raises:
            ValueError: bounded, and a control point would have to move farther than it can.
        """
        points = control_points(self.control_size) * scale + torch.tensor(center, dtype=torch.float64)
        if self.bounded:
            moved = (points - control_points(self.control_size)) / self._spacing
            if bool((moved.abs() >= 1).any()):
                raise ValueError(f"center, scale: {tuple(center)}, {scale} is out of reach of a bounded spline")
            points = torch.atanh(moved)
        return points.flatten().tolist()

    def theta(self, parameters: Tensor) -> Tensor:
        """Source control points `[N, K * K, 2]`, x before y."""
        points = parameters.reshape(-1, self.control_size**2, 2)
        return self.controls + self._spacing * torch.tanh(points) if self.bounded else points

    def grid(self, theta: Tensor) -> Tensor:
        """The constant basis times theta, as one product over the whole batch."""
        flat = theta.mT.reshape(-1, self.control_size**2) @ self.basis.T.to(theta.dtype)
        return flat.reshape(-1, 2, *self.output_size).movedim(1, -1)

    @property
    def _spacing(self) -> float:
        return 2 / (self.control_size - 1)


def control_points(size: int) -> Tensor:
    """Regular target control points `[size * size, 2]` on [-1, 1]^2, row by row, x before y, float64."""
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def spline_basis(points: Tensor, controls: Tensor, regularization: float = 0.0) -> Tensor:
    """The matrix `[M, P]` that maps source control points to the source positions of `points` `[M, 2]`, float64.

    f(x) = a + A x + sum_i w_i U(|x - c_i|), U(r) = r^2 log r^2, with the weights w orthogonal to affine maps.
    """
    count = len(controls)
    affine = torch.cat([torch.ones(count, 1, dtype=controls.dtype), controls], dim=1)
    bending = _radial(controls, controls) + regularization * torch.eye(count, dtype=controls.dtype)
    system = torch.cat([torch.cat([bending, affine], dim=1), torch.cat([affine.T, affine.new_zeros(3, 3)], dim=1)])
    weights: Tensor = torch.linalg.inv(system)[:, :count]
    terms = torch.cat([_radial(points, controls), torch.ones(len(points), 1, dtype=points.dtype), points], dim=1)
    return terms @ weights


def _radial(points: Tensor, centers: Tensor) -> Tensor:
    squared = (points[:, None] - centers).square().sum(-1)
    return torch.xlogy(squared, squared)
