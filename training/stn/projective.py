"""The projective transform: a plane seen from anywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.stn.matrix import MatrixTransform, affine_start, bounded_affine
from training.stn.transform import PARAMETER_BOUND

SMALLEST_DENOMINATOR = 1e-6
LARGEST_PERSPECTIVE = 0.45
"""Bounded, |g| + |h| stays below 0.9: the denominator below never comes near zero."""


class Projective(MatrixTransform):
    """A homography: theta = [[a, b, tx], [c, d, ty], [g, h, 1]], source = (x, y) / w (paper section 3.2).

    The denominator w = g x + h y + 1 is kept away from zero with its sign, so that the horizon, where the plane
    vanishes, gives large but finite coordinates. Bounded, the affine part is that of `Affine`, and w stays above 0.1.
    """

    kind = "projective"
    parameter_names = ("a", "b", "tx", "c", "d", "ty", "g", "h")

    def start(self, center: Sequence[float], scale: float = 1.0) -> list[float]:
        """Raw parameters that look, upright and flat, at the square of half width `scale` around `center`."""
        return [*affine_start(center, scale, self.bounded), 0.0, 0.0]

    def theta(self, parameters: Tensor) -> Tensor:
        """The full 3x3 matrix, its last entry 1."""
        if not self.bounded:
            return F.pad(parameters, (0, 1), value=1.0).reshape(-1, 3, 3)
        perspective = LARGEST_PERSPECTIVE * torch.tanh(parameters[:, 6:])
        last = F.pad(perspective, (0, 1), value=1.0)
        return torch.cat([bounded_affine(parameters[:, :6]), last.unsqueeze(1)], dim=1)

    def grid(self, theta: Tensor) -> Tensor:
        """Source coordinates (x, y) / w, clamped: a division can make large what theta's bound kept small.

        w comes twice, once for x and once for y: runtimes divide arrays of one shape much faster.
        """
        numerators = super().grid(theta[:, :2])
        w = super().grid(theta[:, 2:].expand(-1, 2, -1))
        away = torch.where(w < 0, w.clamp(max=-SMALLEST_DENOMINATOR), w.clamp(min=SMALLEST_DENOMINATOR))
        return (numerators / away).clamp(-PARAMETER_BOUND, PARAMETER_BOUND)
