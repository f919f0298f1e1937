"""Checkpoints that describe themselves: recipe, weights, optimiser and what was measured, in one file without code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import Recipe, RecipeError, recipe_from_fields
from training.models.building import build
from training.models.network import Network

SCHEMA = "stn-serve checkpoint 1"


class CheckpointError(ValueError):
    """A file that is not a checkpoint of ours, or does not fit; says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A network in training, or at its end."""

    recipe: Recipe
    labels: tuple[str, ...]
    input_size: tuple[int, int, int]
    epoch: int
    """Epochs finished."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    data_source: str
    data_sha256: str
    metrics: dict[str, float]
    """Of the last evaluation; empty before the first."""

    @property
    def finished(self) -> bool:
        """Whether the recipe has run to its end."""
        return self.epoch >= self.recipe.training.epochs

    def build_network(self) -> Network:
        """The network with its weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the recipe's network.
        """
        network = build_network(self.recipe, self.input_size, len(self.labels))
        try:
            network.load_state_dict(self.model)
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit the recipe '{self.recipe.name}': {error}") from error
        return network.eval()


def build_network(recipe: Recipe, input_size: tuple[int, int, int], classes: int) -> Network:
    """The network of a recipe, with fresh weights."""
    return build(recipe.model, input_size, classes)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    fields |= {"schema": SCHEMA, "recipe": checkpoint.recipe.to_fields()}
    temporary = path.with_suffix(".tmp")
    torch.save(fields, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. No code in the file is run (`weights_only`).

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or one of another version.
    """
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers meet
        raise CheckpointError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
        raise CheckpointError(f"{path} is not a checkpoint of stn-serve ('{SCHEMA}'); train one with `stn train`")
    try:
        return Checkpoint(**{**fields, "recipe": recipe_from_fields(fields["recipe"], source=str(path))})
    except (TypeError, KeyError, RecipeError) as error:
        raise CheckpointError(f"{path} does not fit this version of stn-serve: {error}") from error
