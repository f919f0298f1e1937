"""The benchmark of birds: one budget and backbone for all, and a table that says what was trained."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from benchmarks.birds import MODELS, Result, markdown, recipe, result_from
from training.data.birds import BirdsData
from training.found import Found
from training.models.photos import PhotosModel

FOUND = Found(images=9, each=(0.5, 0.25), any=0.75, random=0.4, centre=0.3)
RESULT = Result(
    model="2x", seed=0, epochs=16, accuracy_percent=70.0, top5_percent=90.0, test_images=10, parameters=5, found={},
    training_minutes=1.0, hardware="x", date="2026-01-01",
)  # fmt: skip


def test_all_networks_share_backbone_pixels_and_budget() -> None:
    recipes = {model: recipe(model, 1) for model in MODELS}
    networks = [chosen.model for chosen in recipes.values() if isinstance(chosen.model, PhotosModel)]
    assert len(networks) == len(MODELS)
    assert len({(network.backbone, network.crop_size, network.dropout) for network in networks}) == 1
    data = [chosen.data for chosen in recipes.values() if isinstance(chosen.data, BirdsData)]
    assert len({chosen.augmentation for chosen in data}) == 1
    begun = [
        replace(chosen.training, localization_multiplier=1.0) for model, chosen in recipes.items() if model != "cnn"
    ]
    assert all(each == begun[0] for each in begun)
    assert begun[0].warm_start == "runs/birds/cnn-1/checkpoint.pt"


def test_the_table_shows_the_spread_over_seeds_and_what_was_found() -> None:
    results = [
        replace(RESULT, model="cnn"),
        replace(RESULT, found={"head": FOUND}),
        replace(RESULT, seed=1, accuracy_percent=73.0, found={"head": replace(FOUND, any=0.85)}),
    ]
    results.append(replace(RESULT, model="4x", training_loss=1.25, test_loss=0.75))
    table = markdown(results)
    assert "| plain network | 82.3 | **70.0** | 90.0 | 1 |" in table
    assert "| 2xST-CNN, 448 px | 83.9 | **71.5 ± 2.1** | 90.0 ± 0.0 | 2 |" in table
    assert "| 2xST-CNN, 448 px | head | 50, 25 | 80.0 | 40.0 | 30.0 | 9 |" in table
    assert "| 2x/0 | 70.0 | 90.0 | - | - | 1.0 |" in table
    assert "| 4x/0 | 70.0 | 90.0 | 1.25 | 0.75 | 1.0 |" in table


def test_results_survive_their_file() -> None:
    result = replace(RESULT, found={"head": FOUND})
    assert result_from(json.loads(json.dumps(asdict(result)))) == result
