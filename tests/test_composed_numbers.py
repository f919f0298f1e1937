"""Composed house numbers: readable, as labelled, where they should be, and the same for the same seed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.data.composed_numbers import LABELS, NULL, STRIP, Crop, NumberComposer, draw_numbers, lay_strip
from training.data.draws import Draws
from training.data.glyphs import DIGITS, FONTS, ROWS, WIDENINGS, collect, printed
from training.data.house_numbers import ComposedNumbers, HouseNumbersData
from training.data.mnist import load_digits

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_data(crop: Crop = "tight", size: int = 32, seed: int = 0) -> ComposedNumbers:
    config = HouseNumbersData(
        family="house_numbers", size=size, crop=crop, handwriting="scikit-learn", train_images=48, test_images=50
    )
    return ComposedNumbers(config, CPU, seed)


def test_every_font_has_every_digit_and_they_differ() -> None:
    inks = printed(DIGITS)
    assert len(inks) == len(FONTS) * len(WIDENINGS) * len(DIGITS)
    for start in range(0, len(inks), len(DIGITS)):
        font = [ink.tobytes() for ink in inks[start : start + len(DIGITS)]]
        assert len(set(font)) == len(DIGITS)
        assert all(ink.max() > 200 for ink in inks[start : start + len(DIGITS)])


def test_numbers_have_one_to_five_digits_and_begin_with_none_but_a_lone_zero() -> None:
    targets = draw_numbers(4000, Draws(seeded(1)))
    present = targets != NULL
    lengths = present.sum(1)
    assert set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert torch.equal(present, torch.arange(5) < lengths[:, None])
    assert (targets[lengths > 1, 0] > 0).all()
    assert (targets[lengths == 1, 0] == 0).any()


def test_a_strip_holds_its_glyphs_side_by_side() -> None:
    glyphs = collect(printed("15")[:2])
    cells = torch.tensor([[1, 2, 0], [2, 0, 0]])
    gaps = torch.tensor([[3, 0, 0], [0, 0, 0]])
    strip, lengths = lay_strip(glyphs, cells, gaps, torch.zeros_like(cells))
    one, five = glyphs.widths[1:].tolist()
    assert lengths.tolist() == [one + 3 + five, five]
    columns = strip[0, 0].sum(0) > 0
    assert not columns[one : one + 3].any()
    assert not columns[one + 3 + five :].any()
    torch.testing.assert_close(strip[0, 0, :, one + 3 : one + 3 + five], strip[1, 0, :, :five])
    assert strip.shape == (2, 1, ROWS, STRIP)


@pytest.mark.parametrize("crop", ["tight", "loose"])
def test_batches_depend_on_seed_and_epoch_alone(crop: Crop) -> None:
    def first(data: ComposedNumbers, epoch: int) -> tuple[Tensor, Tensor]:
        return next(data.train_batches(epoch, 16))

    images, targets = first(small_data(crop), 3)
    again, same = first(small_data(crop), 3)
    assert torch.equal(images, again)
    assert torch.equal(targets, same)
    assert not torch.equal(images, first(small_data(crop), 4)[0])
    assert not torch.equal(images, first(small_data(crop, seed=1), 3)[0])


def test_loose_crops_may_begin_as_tight_ones() -> None:
    """Which images differ from an epoch's others, and that those of the test set do not, says how loose they are."""
    loosening, loose = (
        ComposedNumbers(replace(small_data("loose").config, loosening_epochs=epochs), CPU) for epochs in (2.0, 0.0)
    )
    for epoch, is_same in ((0, False), (1, False), (2, True), (3, True)):
        (images, targets), (usual, same) = (next(data.train_batches(epoch, 8)) for data in (loosening, loose))
        assert torch.equal(targets, same)
        assert torch.equal(images, usual) is is_same
    assert torch.equal(next(loosening.test_batches(8))[0], next(loose.test_batches(8))[0])


def test_an_epoch_is_full_batches_of_pixels_and_classes() -> None:
    data = small_data()
    batches = list(data.train_batches(0, 20))
    assert [len(targets) for _, targets in batches] == [20, 20]
    images, targets = batches[0]
    assert images.shape == (20, *data.input_size)
    assert targets.shape == (20, 5)
    assert images.isfinite().all()
    assert 0 <= images.min() < 0.2
    assert 0.8 < images.max() <= 1
    assert data.labels == LABELS == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "")


def test_the_test_set_is_the_same_for_every_seed_and_asked_twice() -> None:
    one, other = small_data(seed=1), small_data(seed=2)
    first = torch.cat([images for images, _ in one.test_batches(20)])
    assert len(first) == 50
    assert torch.equal(first, torch.cat([images for images, _ in one.test_batches(20)]))
    assert torch.equal(first, torch.cat([images for images, _ in other.test_batches(20)]))


@pytest.mark.parametrize(
    ("crop", "looseness", "least", "most"),
    [("tight", 1.0, 0.7, 0.85), ("loose", 1.0, 0.28, 0.58), ("loose", 0.5, 0.42, 0.66), ("loose", 0.0, 0.7, 0.85)],
)
def test_numbers_stand_in_the_boxes_that_the_crop_promises(
    crop: Crop, looseness: float, least: float, most: float
) -> None:
    """Ink alone, as the composer warps it: its extent is the annotated box's share of the crop."""
    digits = load_digits("scikit-learn")
    composer = NumberComposer(64, crop, digits.train_images, digits.train_labels, CPU)
    draws = Draws(seeded(5))
    targets = draw_numbers(64, draws)
    placement = composer._place(64, draws, looseness)
    ink, _ = composer._warp(targets, placement, draws)
    columns, rows = (ink[:, 0] > 0.1).any(1), (ink[:, 0] > 0.1).any(2)
    for extent in (columns.sum(1) / 64, rows.sum(1) / 64):
        assert least - 0.25 < extent.min()
        assert extent.max() < most + 0.15
    assert least < placement.half.mean(1).median() < most
    centers = (columns * torch.arange(64)).sum(1) / columns.sum(1) / 32 - 1
    assert (centers - placement.center[:, 0]).abs().median() < 0.08


def test_the_source_says_that_it_is_synthetic() -> None:
    assert "synthetic" in small_data().source
    assert "not SVHN" in small_data().source
    assert small_data("tight").sha256 != small_data("loose").sha256
