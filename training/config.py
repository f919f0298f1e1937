"""Recipes: one TOML file says everything about an experiment; what it leaves out has the defaults written here."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import ErrorDetails

from training.data.digits import DigitsData
from training.data.loading import DataConfig
from training.models.building import ModelConfig, resolve
from training.models.digits import DigitsModel

RECIPES = Path(__file__).parent / "recipes"
NETWORKS = {"digits": "digits", "house_numbers": "house_numbers", "birds": "photos", "folder": "photos"}
"""Families of networks, by the families of data that they are for."""


class RecipeError(ValueError):
    """A recipe that cannot be read or does not fit; says which field, what was expected and what came."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How a network learns."""

    epochs: int = 640
    """Passes over the training set. 640 of 60,000 digits in batches of 256 are the paper's 150,000 iterations."""
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    """The peak where the schedule warms up."""
    momentum: float = 0.9
    """Of SGD. The paper does not name it; the reference Caffe solvers of its time used 0.9."""
    weight_decay: float = 0.0
    schedule: Literal["step", "one_cycle"] = "step"
    """`step` divides the rate by ten after each step; `one_cycle` climbs for a tenth, then falls to zero by cosine."""
    steps: int = 3
    """Into how many equal ones `step` divides the training."""
    localization_multiplier: float = 1.0
    """Learning rate of localisation networks against the rest."""
    gradient_clip: float = 0.0
    """Largest norm of the whole gradient; 0 does not clip."""
    label_smoothing: float = 0.0
    warm_start: str | None = None
    """A checkpoint whose weights training begins with, in place of the backbone's own."""
    evaluations: int = 20
    """About how many times the test set is measured."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs convolutions and products in bfloat16; weights, grids and losses stay in float32."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "steps", "evaluations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing: expected 0 up to below 1, got {self.label_smoothing}")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One experiment."""

    name: str
    description: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DigitsData)
    model: ModelConfig = field(default_factory=DigitsModel)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if self.model.family != NETWORKS[self.data.family]:
            raise ValueError(f"model.family: '{self.model.family}' does not fit data.family '{self.data.family}'")

    def to_fields(self) -> dict[str, Any]:
        """Plain dictionaries and lists, as a checkpoint keeps them; `recipe_from_fields` reads them back."""
        return asdict(self)

    def resolved(self) -> Recipe:
        """This recipe with what can only be looked up where training is; checkpoints keep it so.

        Raises:
            WeightsError: a pretrained network is asked for that is not there.
        """
        return replace(self, model=resolve(self.model))

    def changed(self, settings: Sequence[str]) -> Recipe:
        """This recipe with settings applied, as `load_recipe` does.

        Raises:
            RecipeError: a setting that does not fit.
        """
        return _with_settings(self.to_fields(), settings, self.name)


_ADAPTER = TypeAdapter(Recipe)


def recipe_names() -> list[str]:
    """The recipes that come with stn-serve."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(recipe: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe: the name of one that comes with stn-serve, or the path of a TOML file.

    Args:
        recipe: name or path.
        settings: changes such as `training.epochs=3`, applied in order; values are TOML, bare words are strings.

    Raises:
        RecipeError: no such recipe, not TOML, or a field that does not fit.
    """
    path = Path(recipe) if recipe.endswith(".toml") else RECIPES / f"{recipe}.toml"
    try:
        fields = tomllib.loads(path.read_text())
    except OSError as error:
        known = ", ".join(recipe_names())
        raise RecipeError(f"no recipe '{recipe}'; give the path of a .toml file or one of: {known}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not TOML: {error}") from error
    fields.setdefault("name", path.stem)
    return _with_settings(fields, settings, str(path))


def recipe_from_fields(fields: dict[str, Any], *, source: str = "recipe") -> Recipe:
    """A recipe from plain dictionaries.

    Raises:
        RecipeError: a field is missing, unknown or ill-typed.
    """
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_explained(error.errors()[0])}") from error


def _explained(error: ErrorDetails) -> str:
    """The field as users write it: without the family, which pydantic names after `data` and `model`."""
    section, *rest = (str(part) for part in error["loc"]) if error["loc"] else ("recipe",)
    if error["type"] == "union_tag_invalid":
        return f"{section}.family: expected one of {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}"
    if error["type"] == "union_tag_not_found":
        return f"{section}: expected a table, got {error['input']!r}"
    place = ".".join((section, *rest[section in ("data", "model") :]))
    return f"{place}: {error['msg']}, got {error['input']!r}"


def _with_settings(fields: dict[str, Any], settings: Sequence[str], source: str) -> Recipe:
    for setting in settings:
        _apply(fields, setting)
    return recipe_from_fields(fields, source=source)


def _apply(fields: dict[str, Any], setting: str) -> None:
    name, separator, text = setting.partition("=")
    if not separator:
        raise RecipeError(f"setting '{setting}': expected NAME=VALUE, such as training.epochs=3")
    *sections, key = name.strip().split(".")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise RecipeError(f"setting '{setting}': '{section}' has no fields")
    fields[key] = _value(text.strip())


def _value(text: str) -> Any:  # noqa: ANN401 - whatever TOML holds
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
