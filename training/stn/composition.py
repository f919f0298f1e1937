"""Transformers in series and side by side: one map after another, and where parallel ones start."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from training.stn.projective import SMALLEST_DENOMINATOR
from training.stn.transform import Transform


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Theta of `x -> outer(inner(x))`: `inner` samples what `outer` has sampled; the result samples what `outer` does.

    With it, transformers on feature maps have an answer to "where did it look" on the image: convolutions with same
    padding and poolings that divide the size keep normalised coordinates, so that theta of the first transformer
    composed with theta of the second maps the second's output onto the image.

    Args:
        outer: theta of the earlier transformer, `[N, D, D + 1]` or `[N, 3, 3]`.
        inner: theta of the later one, of the same dimensions; or a thin plate spline `[N, P, 2]`, whose control points
            are mapped (exact there, an approximation between them).

    Raises:
        ValueError: `outer` is a thin plate spline (the result would be none), or the two do not fit.
    """
    if outer.shape[-1] == 2:
        raise ValueError(f"outer: expected a matrix [N, D, D + 1] or [N, 3, 3], got {list(outer.shape)}")
    if inner.shape[-1] == 2 and outer.shape[-1] == 3:
        return _map_points(outer, inner)
    if inner.shape[-1] != outer.shape[-1]:
        raise ValueError(f"outer, inner: expected maps of one space, got {list(outer.shape)} and {list(inner.shape)}")
    product = _square(outer) @ _square(inner)
    projective = product.shape[-1] == 3 and 3 in (outer.shape[-2], inner.shape[-2])
    return product if projective else product[..., :-1, :]


def tile(transform: Transform, count: int, scale: float = 0.5) -> list[list[float]]:
    """Raw parameters for `count` parallel transformers that tile the image plane, row by row (paper appendix A.6).

    Args:
        transform: whose parameters.
        count: how many transformers: arranged in the most square grid of rows and columns, rows <= columns.
        scale: half width of each crop; centres are moved inwards so that no crop leaves the image.

    Raises:
        ValueError: a count below 1.
    """
    if count < 1:
        raise ValueError(f"count: expected 1 or more transformers, got {count}")
    rows = max(divisor for divisor in range(1, isqrt(count) + 1) if count % divisor == 0)
    reach = max(0.0, 1 - scale)
    return [
        transform.start((_center(column, count // rows, reach), _center(row, rows, reach)), scale)
        for row in range(rows)
        for column in range(count // rows)
    ]


def _center(index: int, count: int, reach: float) -> float:
    center = (2 * index + 1) / count - 1
    return max(-reach, min(reach, center))


def _square(theta: Tensor) -> Tensor:
    rows, columns = theta.shape[-2:]
    if rows == columns:
        return theta
    last = torch.eye(columns, dtype=theta.dtype, device=theta.device)[-1:]
    return torch.cat([theta, last.expand(*theta.shape[:-2], 1, columns)], dim=-2)


def _map_points(theta: Tensor, points: Tensor) -> Tensor:
    mapped = points @ theta[..., :2].mT + theta[..., 2].unsqueeze(-2)
    if theta.shape[-2] == 2:
        return mapped
    w = mapped[..., 2:]
    away = torch.where(w < 0, w.clamp(max=-SMALLEST_DENOMINATOR), w.clamp(min=SMALLEST_DENOMINATOR))
    return mapped[..., :2] / away
