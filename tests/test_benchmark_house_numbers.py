"""The benchmark of house numbers: cells differ in their transformers alone, the table says what was trained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.house_number_cost import Cost
from benchmarks.house_numbers import BY_WORTH, CROPS, MODELS, Cell, Result, Style, markdown


@pytest.mark.parametrize("style", ["ours", "modern", "paper"])
@pytest.mark.parametrize("size", CROPS)
def test_cells_of_a_column_differ_in_their_transformers_alone(size: int, style: Style) -> None:
    cells = (Cell(source="composed", style=style, size=size, model=model, epochs=3, seed=1) for model in MODELS)
    cnn, *others = [cell.recipe() for cell in cells]
    assert (cnn.data.size, cnn.data.crop) == (size, CROPS[size])  # type: ignore[union-attr]
    for other in others:
        assert other.model != cnn.model
        alike = replace(other.training, localization_multiplier=cnn.training.localization_multiplier)
        assert replace(other, model=cnn.model, training=alike) == cnn
        assert replace(other.model, transformers="none") == cnn.model  # type: ignore[arg-type]


def test_large_images_begin_with_what_was_learned_on_small_ones() -> None:
    large = Cell(source="composed", style="ours", size=128, model="multi", epochs=10, seed=2)
    small = large.begins_with
    assert small is not None
    assert (small.size, small.model, small.seed) == (64, "cnn", 2)
    assert small.begins_with is None
    assert large.recipe().training.warm_start == f"{small.directory}/checkpoint.pt"
    assert replace(large, style="paper").begins_with is None


def test_every_cell_has_its_turn() -> None:
    assert sorted(BY_WORTH) == sorted((size, model) for size in CROPS for model in MODELS)


def test_the_table_shows_spread_beside_the_papers_numbers() -> None:
    first = Result(
        size=128, model="multi", style="ours", source="composed", seed=0, epochs=10, error_percent=10.0,
        test_images=100, parameters=5, training_minutes=1.0, hardware="x", date="2026-01-01",
    )  # fmt: skip
    cost = Cost(what="training step", size=64, batch=16, cnn_ms=100, multi_ms=104, rounds=3, hardware="x", date="d")
    table = markdown([first, replace(first, seed=1, error_percent=12.0), replace(first, model="cnn")], [cost])
    assert "| multi | 3.9 | **11.00** ± 1.00 (2 seeds) |" in table
    assert "| cnn | 5.6 | **10.00** (1 seed) |" in table
    assert "| single | 3.9 | - |" in table
    assert "synthetic" in table
    assert "**1.040**" in table
