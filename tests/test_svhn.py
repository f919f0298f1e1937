"""SVHN's full numbers: read from files as published, cropped as the paper's, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from svhn_files import Digit, write_digit_struct, write_part

from training.config import load_recipe
from training.data.composed_numbers import NULL
from training.data.mnist import DataError
from training.data.svhn import Crops, StreetNumbers
from training.data.svhn_annotations import CACHE, FILE, parse, read_annotations
from training.data.svhn_crops import crop_boxes, cut_out, numbers_of
from training.train import load_data

IMAGES: dict[str, tuple[tuple[int, int], list[Digit]]] = {
    "1.png": ((100, 50), [(1, 40, 10, 8, 20), (9, 50, 12, 9, 20)]),
    "2.png": ((60, 60), [(10, 20, 20, 15, 25)]),
    "3.png": ((90, 40), [(label, 5 + 12 * label, 5, 10, 25) for label in range(1, 7)]),
    "4.png": ((80, 40), [(label, -3 + 15 * label, -2, 14, 30) for label in range(5)]),
}
"""Two digits, a single 0, six digits, and five whose boxes leave the image."""


def numbered(count: int, first: int = 1) -> dict[str, tuple[tuple[int, int], list[Digit]]]:
    """Images of one digit each, whose brightness says which."""
    return {f"{first + i}.png": ((40, 40), [(1 + i % 10, 12.0, 12.0, 16.0, 16.0)]) for i in range(count)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_part(tmp_path / "train", IMAGES)
    return tmp_path / "train"


def test_single_and_many_digits_are_read_as_matlab_stores_them(folder: Path) -> None:
    annotations = parse(folder / FILE)
    assert annotations.names.tolist() == list(IMAGES)
    assert annotations.counts.tolist() == [2, 1, 6, 5]
    expected = [(*box, float(label)) for _, digits in IMAGES.values() for label, *box in digits]
    assert [tuple(row) for row in annotations.digits.tolist()] == expected


def test_annotations_are_cached_until_the_file_changes(folder: Path) -> None:
    first = read_annotations(folder)
    (folder / CACHE).with_suffix(".tmp.npz").write_bytes(b"left by a process that was killed")
    again = read_annotations(folder)
    np.testing.assert_array_equal(first.digits, again.digits)
    assert (folder / CACHE).exists()
    write_digit_struct(folder / FILE, {"1.png": [(3, 1, 2, 3, 4)]})
    assert read_annotations(folder).names.tolist() == ["1.png"]
    (folder / CACHE).write_bytes(b"cut off")
    assert read_annotations(folder).names.tolist() == ["1.png"]


def test_numbers_of_more_than_five_digits_are_dropped_and_ten_means_zero(folder: Path) -> None:
    numbers = numbers_of(parse(folder / FILE))
    assert numbers.names.tolist() == ["1.png", "2.png", "4.png"]
    assert numbers.targets[0].tolist() == [1, 9, NULL, NULL, NULL]
    assert numbers.targets[1].tolist() == [0, NULL, NULL, NULL, NULL]
    assert numbers.boxes[0].tolist() == [40, 10, 59, 32]


def test_a_tight_crop_is_the_box_enlarged_by_thirty_percent() -> None:
    box = crop_boxes(np.array([[40.0, 10.0, 60.0, 30.0]]), "tight")
    np.testing.assert_allclose(box, [[37, 7, 63, 33]])


def test_a_loose_crop_holds_the_box_somewhere() -> None:
    boxes = np.array([[100.0, 100.0, 140.0, 120.0]] * 200)
    crops = crop_boxes(boxes, "loose")
    assert (crops[:, :2] < boxes[:, :2]).all()
    assert (crops[:, 2:] > boxes[:, 2:]).all()
    share = (boxes[:, 2:] - boxes[:, :2]) / (crops[:, 2:] - crops[:, :2])
    assert 0.3 < share.min() < share.max() <= 0.5
    assert np.ptp((boxes[:, 0] - crops[:, 0]) / (crops[:, 2] - crops[:, 0])) > 0.3
    np.testing.assert_array_equal(crops, crop_boxes(boxes, "loose"))


def test_crops_show_the_number_and_end_at_the_image(folder: Path) -> None:
    crops = Crops(folder, "tight", 32)
    assert crops.images.shape == (3, 32, 32, 3)
    assert abs(int(crops.images[1, 16, 16, 0]) - 30) <= 1
    assert abs(int(crops.images[1, 1, 1, 0]) - 10) <= 1
    assert abs(int(crops.images[0, 16, 22, 0]) - 210) <= 1
    assert (folder / "crops-tight-32.npy").exists()


def test_damaged_files_are_named_with_a_remedy(folder: Path) -> None:
    mat = folder / FILE
    whole = mat.read_bytes()
    for damaged in (b"", b"no HDF5", whole[: len(whole) // 2], whole[:600]):
        mat.write_bytes(damaged)
        with pytest.raises(DataError, match=r"digitStruct.mat cannot be read .*unpack train.tar.gz there again"):
            read_annotations(folder)
    mat.unlink()
    with pytest.raises(DataError, match=r"digitStruct.mat is missing; unpack train.tar.gz"):
        read_annotations(folder)


def test_images_that_are_missing_stop_everything(folder: Path) -> None:
    (folder / "3.png").unlink()
    with pytest.raises(DataError, match=r"names 4 images, 1 of them are not there \(3.png, ...\); unpack train.tar.gz"):
        Crops(folder, "tight", 32)


def test_a_damaged_image_leaves_no_crops_behind(folder: Path) -> None:
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"2.png cannot be read .*unpack train.tar.gz"):
        Crops(folder, "tight", 32)
    assert not (folder / "crops-tight-32.npy").exists()


def test_boxes_beside_their_image_do_not_belong_to_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2.png has 60x60 pixels, but digitStruct.mat puts its number at \[70"):
        cut_out(folder / "2.png", np.array([70.0, 5, 90, 25]), 32)
    with Image.open(folder / "2.png") as image:
        assert cut_out(folder / "2.png", np.array([-10.0, -10, 100, 100]), 60).tolist() == np.asarray(image).tolist()


def test_training_validation_and_test_images_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_DATA_DIR", str(tmp_path))
    for part, count in (("train", 30), ("extra", 20), ("test", 10)):
        write_part(tmp_path / "svhn" / part, numbered(count))
    settings = ["data.source=svhn", "data.size=32"]
    data = load_data(load_recipe("house_numbers", [*settings, "data.measured_on=validation"]), torch.device("cpu"))
    assert isinstance(data, StreetNumbers)
    assert "SVHN (train + extra)" in data.source
    assert data.train_count == 40
    batches = list(data.train_batches(0, 8))
    assert len(batches) == 5
    for images, targets in (*batches, *data.test_batches(4)):
        assert images.shape[1:] == (3, 32, 32)
        brightness = (images[:, 0, 16, 16] * 255).round().long()
        assert torch.equal((brightness - 30) // 20, targets[:, 0])
        assert (targets[:, 1:] == NULL).all()
    assert sum(len(targets) for _, targets in data.test_batches(4)) == 10
    assert torch.equal(batches[0][0], next(data.train_batches(0, 8))[0])
    assert not torch.equal(batches[0][1], next(data.train_batches(1, 8))[1])
    tested = load_data(load_recipe("house_numbers", settings), torch.device("cpu"))
    assert [len(targets) for _, targets in tested.test_batches(6)] == [6, 4]
    assert tested.sha256 == data.sha256
