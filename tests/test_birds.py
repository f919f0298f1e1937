"""CUB-200-2011 in its official layout, and what transformers found of heads, against chance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photo_sets import write_birds

from stn_serve.metadata import InputImage
from training.data.bird_parts import locate
from training.data.birds import list_birds
from training.data.mnist import DataError
from training.found import measure_found

SQUARE = InputImage(height=64, width=64, color="rgb", resize="crop")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    write_birds(tmp_path)
    return tmp_path


def test_the_official_layout_is_read(birds: Path) -> None:
    photos = list_birds(str(birds))
    assert photos.labels == ("Red Bird", "Blue winged Bird")
    assert [(photo.path.name, photo.label) for photo in photos.test] == [("2.jpg", 0), ("2.jpg", 1)]
    assert len(photos.train) == 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "images.txt").unlink(), ["images.txt", "CUB_200_2011"]),
        (lambda folder: (folder / "classes.txt").unlink(), ["classes.txt"]),
        (lambda folder: (folder / "train_test_split.txt").write_text("1 1\n"), ["do not fit together", "'2'"]),
        (lambda folder: (folder / "image_class_labels.txt").write_text("1\n"), ["line 1", "a key and a value"]),
        (
            lambda folder: (folder / "train_test_split.txt").write_text("".join(f"{n} 1\n" for n in range(1, 7))),
            ["6 photos to train and 0 to test"],
        ),
    ],
)
def test_a_damaged_layout_is_explained(birds: Path, spoil: object, words: list[str]) -> None:
    spoil(birds)  # type: ignore[operator]
    with pytest.raises(DataError) as refusal:
        list_birds(str(birds))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_without_birds_and_network_it_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("training.data.birds.reachable", lambda _: False)
    with pytest.raises(DataError, match=r"nothing/CUB_200_2011.*cannot be reached.*data\.path"):
        list_birds(None)


def test_parts_are_placed_in_what_the_network_sees(birds: Path) -> None:
    """Photos of 96 x 64: the middle 64 columns are seen, from column 16 on."""
    heads = locate("head", list_birds(str(birds)).train, birds, SQUARE)
    assert heads[0] is not None
    assert heads[0] == pytest.approx(np.array([[(22 - 16) / 32 - 1, 24 / 32 - 1]]))
    assert locate("body", list_birds(str(birds)).train, birds, SQUARE) == [None] * 4, "its parts are not visible"


def test_parts_outside_of_what_the_network_sees_cannot_be_found(birds: Path) -> None:
    tall = InputImage(height=64, width=8, color="rgb", resize="crop")
    assert locate("head", list_birds(str(birds)).train, birds, tall)[0] is None


def crops(*centres: tuple[float, float], scale: float = 0.5) -> np.ndarray:
    return np.array([[[scale, 0, x], [0, scale, y]] for x, y in centres])


def test_found_counts_crops_that_hold_all_points() -> None:
    theta = np.stack([crops((-0.5, -0.5), (0.5, 0.5))] * 3)
    parts = [np.array([[-0.4, -0.9], [-0.1, -0.1]]), np.array([[-0.1, 0.0], [0.1, 0.0]]), None]
    found = measure_found(theta, parts)
    assert found.images == 2
    assert found.each == (0.5, 0.0)
    assert found.any == 0.5
    assert found.centre == 0.5


@settings(deadline=None, max_examples=30)
@given(x=st.floats(-0.9, 0.9), y=st.floats(-0.9, 0.9), scale=st.floats(0.2, 0.9), count=st.integers(1, 4))
def test_the_chance_of_random_crops_is_what_drawing_them_gives(x: float, y: float, scale: float, count: int) -> None:
    random = np.random.default_rng(0)
    centres = random.uniform(-(1 - scale), 1 - scale, (20_000, count, 2))
    drawn = (np.abs(centres - (x, y)) <= scale).all(-1).any(-1).mean()
    theta = crops(*([(0, 0)] * count), scale=scale)[None]
    assert measure_found(theta, [np.array([[x, y]])]).random == pytest.approx(drawn, abs=0.02)
