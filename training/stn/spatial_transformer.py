"""The spatial transformer: localisation network, grid and sampler as one module for any place (paper section 3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.stn.composition import compose
from training.stn.sampler import Sampler
from training.stn.transform import PARAMETER_BOUND, Transform


class SpatialTransformer(nn.Module):
    """Looks at its input map, decides where to look, and returns the map seen from there.

    Convention:
        In: maps `[N, C, H, W]` (`[N, C, D, H, W]` with a transform of volumes), any size, anywhere in any network. Out:
        the warped map `[N, C, h, w]` of the transform's output size, and theta `[N, ...]`, the map from output to input
        coordinates (see `Transform`). Everything is differentiable, with respect to the input and through theta.

    One transformer after another composes: see `training.stn.compose`. Several side by side are several modules, or one
    `ParallelSpatialTransformer` where they share the localisation network.

    Args:
        localization: from the input map (or the `context` given to `forward`) to features `[N, F]`.
        transform: which family of warps, and the output size.
        sampler: how to read the input map; by default bilinear with border padding.
        start: raw parameters that every image starts with, such as `transform.start((0, 0), scale=0.6)`, which looks
            closer from the beginning; by default the identity's.
        features: F; by default the `out_features` of the localisation network.
        head_std: standard deviation of the initial weights of the regression layer. 0 starts every image at exactly
            `start`, and then the localisation network gets no gradient in the first step; about 1e-3 gives it one.

    Raises:
        ValueError: the sampler's supersampling does not divide the transform's grid, a negative `head_std`, a `start`
            that is not one number for each parameter, or no way to know `features`.
    """

    def __init__(
        self,
        localization: nn.Module,
        transform: Transform,
        sampler: Sampler | None = None,
        *,
        start: Sequence[float] | None = None,
        features: int | None = None,
        head_std: float = 0.0,
    ) -> None:
        super().__init__()
        self.localization = localization
        self.transform = transform
        self.sampler = sampler or Sampler()
        _check_supersampling(transform, self.sampler)
        start = transform.identity() if start is None else start
        if len(start) != transform.parameter_count:
            raise ValueError(f"start: expected {transform.parameter_count} parameters, got {len(start)}")
        self.head = regression_layer(_features(localization, features), [start], head_std)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Size of the warped map."""
        return tuple(size // self.sampler.supersample for size in self.transform.output_size)

    def forward(
        self, maps: Tensor, context: Tensor | None = None, outer: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The warped map and theta.

        Args:
            maps: what is sampled.
            context: what the localisation network sees instead, such as a reduced copy or deeper features.
            outer: theta of a transformer before this one on the same maps. This one's is composed with it, and `maps`
                are sampled once through both: a series of transformers blurs nothing and loses no border (inverse
                compositional networks, Lin and Lucey 2017).
        """
        parameters = self.head(self.localization(maps if context is None else context))
        theta, grid = self._look(parameters, outer)
        return self.sampler(maps, grid, grid_is_finite=True), theta

    def _look(self, parameters: Tensor, outer: Tensor | None) -> tuple[Tensor, Tensor]:
        """Theta and grid, after `outer` if there is one: as precise and as finite as `Transform` keeps its own."""
        theta: Tensor
        grid: Tensor
        theta, grid = self.transform(parameters)
        if outer is None:
            return theta, grid
        with torch.autocast(parameters.device.type, enabled=False):
            theta = compose(outer, theta).clamp(-PARAMETER_BOUND, PARAMETER_BOUND)
            return theta, self.transform.grid(theta)


class ParallelSpatialTransformer(SpatialTransformer):
    """S transformers side by side on one input, with one shared localisation network (paper section 4.3).

    In: maps `[N, C, H, W]`. Out: the warped maps `[N, S, C, h, w]` and theta `[N, S, ...]`.

    Args:
        localization: from the input map (or `context`) to features `[N, F]`.
        transform: the family of warps of each, and the output size.
        starts: raw parameters each transformer starts with, one row each. Identical starts would stay identical for
            ever; `training.stn.tile` makes them cover the image.
        sampler: how to read the input map; by default bilinear with border padding.
        features: F; by default the `out_features` of the localisation network.
        head_std: as for `SpatialTransformer`.

    Raises:
        ValueError: as for `SpatialTransformer`, or `starts` is not one row of parameters for each transformer.
    """

    def __init__(
        self,
        localization: nn.Module,
        transform: Transform,
        starts: Sequence[Sequence[float]],
        sampler: Sampler | None = None,
        *,
        features: int | None = None,
        head_std: float = 0.0,
    ) -> None:
        super().__init__(localization, transform, sampler, features=features, head_std=head_std)
        if not starts or any(len(row) != transform.parameter_count for row in starts):
            lengths = [len(row) for row in starts]
            raise ValueError(f"starts: expected rows of {transform.parameter_count} parameters, got lengths {lengths}")
        self.count = len(starts)
        self.head = regression_layer(self.head.in_features, starts, head_std)

    def forward(
        self, maps: Tensor, context: Tensor | None = None, outer: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The warped maps and their thetas; arguments as for `SpatialTransformer`, all composed with one `outer`."""
        raw: Tensor = self.head(self.localization(maps if context is None else context))
        each = None if outer is None else outer.repeat_interleave(self.count, dim=0)
        theta, grid = self._look(raw.reshape(-1, self.transform.parameter_count), each)
        warped = self.sampler(maps.repeat_interleave(self.count, dim=0), grid, grid_is_finite=True)
        return warped.unflatten(0, (-1, self.count)), theta.unflatten(0, (-1, self.count))


def regression_layer(features: int, starts: Sequence[Sequence[float]], std: float) -> nn.Linear:
    """The last layer of a localisation network: every image begins at `starts` (paper appendix A.4: zero weights)."""
    if not 0 <= std < float("inf"):
        raise ValueError(f"head_std: expected a finite number >= 0, got {std}")
    bias = torch.tensor(starts).flatten()
    if not bias.isfinite().all():
        raise ValueError(f"starts: expected finite numbers, got {starts}")
    layer = nn.Linear(features, len(bias))
    with torch.no_grad():
        layer.weight.normal_(std=std) if std else layer.weight.zero_()
        layer.bias.copy_(bias)
    return layer


def parameter_groups(model: nn.Module, learning_rate: float, localization_multiplier: float) -> list[dict[str, Any]]:
    """Optimiser groups that give localisation networks and their heads a learning rate of their own.

    The paper divides it by ten on house numbers and by ten thousand on birds: what moves the grid moves all after it.

    Raises:
        ValueError: a multiplier that is negative or not finite.
    """
    if not 0 <= localization_multiplier < float("inf"):
        raise ValueError(f"localization_multiplier: expected a finite number >= 0, got {localization_multiplier}")
    localization = list(_localization_parameters(model))
    known = {id(parameter) for parameter in localization}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [(others, learning_rate), (localization, learning_rate * localization_multiplier)]
    return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]


def _localization_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    seen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, SpatialTransformer):
            for part in (module.localization, module.head):
                seen |= {id(parameter): parameter for parameter in part.parameters()}
    return seen.values()


def _features(localization: nn.Module, features: int | None) -> int:
    found = features if features is not None else getattr(localization, "out_features", None)
    if not isinstance(found, int) or found < 1:
        raise ValueError(
            f"features: {type(localization).__name__} has no out_features; pass how many features it returns"
        )
    return found


def _check_supersampling(transform: Transform, sampler: Sampler) -> None:
    if any(size % sampler.supersample for size in transform.output_size):
        raise ValueError(
            f"output_size: with supersample={sampler.supersample} the transform's grid must be a multiple of it, "
            f"got {transform.output_size}"
        )
