"""Recipes: what they hold, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import Recipe, RecipeError, load_recipe, recipe_from_fields, recipe_names
from training.data.digits import DigitsData
from training.models.digits import DigitsModel


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_checkpoint(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe_from_fields(recipe.to_fields()) == recipe


def test_a_recipe_is_a_difference_from_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[training]\nepochs = 2\n")
    recipe = load_recipe(str(path))
    assert recipe.name == "mine"
    assert (recipe.seed, recipe.training.epochs) == (3, 2)
    assert recipe.model == Recipe(name="x").model


def test_settings_change_fields_in_order() -> None:
    settings = [
        "training.epochs=1",
        "training.epochs=2",
        "model.transform=similarity",
        "data.distortion.scale=[1, 1.1]",
    ]
    recipe = load_recipe("digits_rts", settings)
    assert recipe.training.epochs == 2
    assert isinstance(recipe.model, DigitsModel)
    assert isinstance(recipe.data, DigitsData)
    assert recipe.model.transform == "similarity"
    assert recipe.data.distortion.scale == (1.0, 1.1)
    assert recipe.changed(["seed=5"]).seed == 5


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epochs=0", "epochs: expected a positive number"),
        ("training.epochs=many", "training.epochs: .*got 'many'"),
        ("training.epoch=3", "training.epoch: Unexpected"),
        ("optimizer=sgd", "optimizer: Unexpected"),
        ("training.optimizer=rmsprop", "training.optimizer: .*'sgd' or 'adamw', got 'rmsprop'"),
        ("training", "expected NAME=VALUE"),
        ("seed.x=1", "'seed' has no fields"),
        ("data.distortion.scale=[2, 1]", "scale: expected 0 < low <= high"),
    ],
)
def test_settings_that_do_not_fit_are_named(setting: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("digits_rts", ["seed=1", setting])


def test_unknown_recipes_list_the_known() -> None:
    with pytest.raises(RecipeError, match="digits_rts"):
        load_recipe("digits_rst")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("seed = \n")
    with pytest.raises(RecipeError, match=r"broken.toml is not TOML"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.family=zebra", "model.family: expected one of 'digits', 'house_numbers', .*got 'zebra'"),
        ("model.width=wide", "model.width: .*number.*'wide'"),
        ("model.dropout=1.5", "dropout: expected 0 up to below 1, got 1.5"),
        ("data.colour=red", "data.colour: "),
        ("data=3", "data: expected a table, got 3"),
        ("data.size=0", "size: expected a positive number, got 0"),
        ("data.loosening_epochs=-1", "loosening_epochs: expected 0 or more, got -1"),
        ("data.loosening_epochs=2", "loosening_epochs: only composed loose crops can begin as tight ones"),
    ],
)
def test_fields_of_other_families_are_named_as_users_write_them(setting: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("house_numbers", [setting])


def test_networks_that_do_not_fit_the_data_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"model.family: 'house_numbers' does not fit data.family 'digits'"):
        load_recipe("digits", ["model={family = 'house_numbers'}"])


def test_a_recipe_without_family_is_of_digits(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text("[model]\nwidth = 8\n")
    recipe = load_recipe(str(path))
    assert (recipe.data, recipe.model) == (DigitsData(), DigitsModel(width=8))
