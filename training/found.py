"""What transformers found: how often a crop holds a part of the thing, against crops that do not look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from training.data.bird_parts import GROUPS, locate
from training.data.birds import find_birds
from training.data.photos import Photos
from training.models.network import Network

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Shares of the images in which crops hold all visible points of a part."""

    images: int
    """On which the part is visible, in the network's input."""
    each: tuple[float, ...]
    """By transformer."""
    any: float
    """At least one of them."""
    random: float
    """At least one of as many crops of the same sizes, anywhere in the image: expected."""
    centre: float
    """A crop of the largest of their sizes in the centre."""


@torch.no_grad()
def look(network: Network, birds: Photos) -> Tensor:
    """Theta of every test photo, `[N, S, 2, 3]`, for a network with crops: translation or attention."""
    network.eval()
    thetas = [network(images).theta for images, _ in birds.test_batches()]
    return torch.cat([theta for theta in thetas if theta is not None])


def find_parts(theta: Tensor, birds: Photos, path: str | None = None) -> dict[str, Found]:
    """What crops of the test photos of birds hold, by the group of parts.

    Args:
        theta: as `look` gives it.
        birds: of the data set `training.data.birds`.
        path: where that is, as its configuration says.

    Raises:
        DataError: the annotations are not there.
    """
    crops, folder = theta.double().cpu().numpy(), find_birds(path)
    return {group: measure_found(crops, locate(group, birds.test_photos, folder, birds.target)) for group in GROUPS}


def found_table(found: Mapping[str, Found]) -> Table:
    """For people: percent of the images in which a crop holds all visible points of a part."""
    count = max(len(result.each) for result in found.values())
    crops = [f"crop {index + 1}" for index in range(count)]
    table = Table("held by, %", *crops, "any crop", "any of as many at random", "one in the centre", "images")
    for group, result in found.items():
        shares = [*result.each, result.any, result.random, result.centre]
        table.add_row(group, *(f"{100 * share:.1f}" for share in shares), str(result.images))
    return table


def measure_found(theta: Array, parts: Sequence[Array | None]) -> Found:
    """Count.

    Args:
        theta: `[N, S, 2, 3]` without rotation: crops.
        parts: for each image the points of the part `[n, 2]`, normalised, or None where it cannot be found.
    """
    known = [index for index, points in enumerate(parts) if points is not None]
    low = np.array([parts[index].min(0) for index in known])[:, None]  # type: ignore[union-attr]  # known
    high = np.array([parts[index].max(0) for index in known])[:, None]  # type: ignore[union-attr]
    scale, centre = theta[known][:, :, (0, 1), (0, 1)], theta[known][..., 2]
    held = _holds(centre, scale, low, high)
    missed_by_chance = 1 - _chance(scale, low, high)
    largest = scale.max(1, keepdims=True)
    return Found(
        images=len(known),
        each=tuple(held.mean(0).tolist()),
        any=float(held.any(1).mean()),
        random=float(1 - missed_by_chance.prod(1).mean()),
        centre=float(_holds(np.zeros_like(largest), largest, low, high).mean()),
    )


def _holds(centre: Array, scale: Array, low: Array, high: Array) -> NDArray[np.bool_]:
    return np.asarray(((centre - scale <= low) & (high <= centre + scale)).all(-1))


def _chance(scale: Array, low: Array, high: Array) -> Array:
    """Of a crop whose centre is anywhere where it does not leave the image."""
    reach = np.maximum(1 - scale, 1e-9)
    good = np.minimum(low + scale, reach) - np.maximum(high - scale, -reach)
    share: Array = np.clip(good / (2 * reach), 0, 1).prod(-1)
    return share
