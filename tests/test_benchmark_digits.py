"""The benchmark of distorted digits: fair cells, and a table that says what was trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.digits import BY_WORTH, MODELS, SETS, Result, Style, markdown, recipe
from training.checkpoint import build_network
from training.data.digits import DigitsData
from training.models.digits import count_parameters


@pytest.mark.parametrize("style", ["ours", "paper"])
@pytest.mark.parametrize("name", SETS)
def test_networks_of_a_set_have_about_equally_many_parameters(name: str, style: Style) -> None:
    counts = {}
    for model in MODELS:
        if style == "paper" or "fcn" not in model:
            chosen = recipe(name, model, style, seed=0, epochs=None)
            assert isinstance(chosen.data, DigitsData)
            side = chosen.data.distortion.canvas
            counts[model] = count_parameters(build_network(chosen, (1, side, side), 10))
    assert max(counts.values()) < 1.06 * min(counts.values()), counts


def test_every_cell_of_the_paper_has_its_turn() -> None:
    assert {(name, model) for name in SETS[:4] for model in MODELS} <= set(BY_WORTH)
    assert len(BY_WORTH) == len(set(BY_WORTH))


def test_the_table_shows_every_schedule_and_its_spread() -> None:
    short = Result(
        set="r", model="cnn", style="ours", seed=0, epochs=2, error_percent=5.0, test_images=10, parameters=1,
        training_minutes=1.0, hardware="x", date="2026-01-01",
    )  # fmt: skip
    long = [replace(short, epochs=9, seed=seed, error_percent=error) for seed, error in enumerate((1.0, 1.5))]
    table = markdown([short, *long])
    assert "1.2 \\| - \\| **1.25** ± 0.25 (9), **5.00** (2)" in table
    assert table.count("| r/cnn ours |") == 3
