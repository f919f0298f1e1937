"""Photos as networks learn from them: decoded and fitted as a server does it, and named where they cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from photo_sets import write_classes, write_photo
from PIL import Image

from stn_serve.images import decode, fit
from training.data import decoded, photos
from training.data.decoded import DecodedPhotos, reduce_photo
from training.data.folder import list_folder
from training.data.mnist import DataError
from training.data.photos import Augmentation, Photos

SIZE = 48


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(photos, "_cache", lambda: folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_classes(tmp_path / "photos")
    return tmp_path / "photos"


def open_photos(folder: Path, seed: int = 0, augmentation: Augmentation | None = None) -> Photos:
    return Photos(list_folder(folder, 0.2), SIZE, augmentation or Augmentation(), torch.device("cpu"), seed)


def test_test_images_are_what_a_server_makes_of_the_same_files(folder: Path) -> None:
    data = open_photos(folder)
    batches = list(data.test_batches(2))
    images = torch.cat([images for images, _ in batches])
    assert images.shape == (3, 3, SIZE, SIZE)
    for image, label, photo in zip(images, torch.cat([labels for _, labels in batches]), data.test_photos, strict=True):
        served, _ = fit(decode(photo.path.read_bytes(), "rgb"), data.target)
        assert torch.equal((image * 255).round().byte(), torch.from_numpy(served).permute(2, 0, 1))
        assert data.labels[int(label)] == photo.path.parent.name


def test_training_images_depend_on_seed_and_epoch_alone(folder: Path) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(open_photos(folder, seed).train_batches(epoch, 4))[0]

    assert torch.equal(first(0, 3), first(0, 3))
    assert not torch.equal(first(0, 3), first(0, 4))
    assert not torch.equal(first(0, 3), first(1, 3))


def test_an_epoch_shows_every_photo_once_but_for_an_unfilled_batch(folder: Path) -> None:
    data = open_photos(folder)
    assert data.train_count == 12
    assert [len(labels) for _, labels in data.train_batches(0, 5)] == [5, 5]
    labels = torch.cat([labels for _, labels in data.train_batches(0, 4)])
    assert sorted(labels.tolist()) == [0] * 4 + [1] * 4 + [2] * 4


def test_training_crops_are_squares_of_the_size_asked_for(tmp_path: Path) -> None:
    """On a ramp a crop of half the shorter side spans half of its values, mirrored or not."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    for name in "ab":
        for index in range(8):
            path = tmp_path / "ramps" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp).save(path)
    data = open_photos(tmp_path / "ramps", augmentation=Augmentation(crop=(0.5, 0.5)))
    images = torch.cat([images for images, _ in data.train_batches(0, 4)]) * 255
    spans = images[..., -1] - images[..., 0]
    assert spans.abs().mean() == pytest.approx(100 * (SIZE - 1) / SIZE, abs=1.5)
    assert (spans > 0).any()
    assert (spans < 0).any()


def test_decoded_photos_are_kept(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_photos(folder)
    monkeypatch.setattr(decoded, "_decode", lambda *_: pytest.fail("decoded again"))
    again = open_photos(folder)
    assert torch.equal(next(first.test_batches())[0], next(again.test_batches())[0])
    assert first.sha256 == again.sha256
    assert {path.suffix for path in cache.iterdir()} == {".pixels", ".json"}


def test_the_hash_tells_photos_classes_and_split_apart(folder: Path) -> None:
    before = open_photos(folder).sha256
    (folder / "red").rename(folder / "zebra")  # the same files, but other numbers of classes
    renamed = open_photos(folder).sha256
    write_photo(folder / "zebra" / "more.png", "red")
    assert len({before, renamed, open_photos(folder).sha256}) == 3


def test_large_photos_are_reduced_and_small_ones_stay(tmp_path: Path) -> None:
    paths = [tmp_path / "large.png", tmp_path / "small.png"]
    write_photo(paths[0], "red", size=(300, 200))
    write_photo(paths[1], "blue", size=(60, 50))
    photos_ = DecodedPhotos(paths, lambda _, photo: reduce_photo(photo, 100), "100", tmp_path / "cache")
    assert [photo.shape for photo in photos_] == [(100, 150, 3), (50, 60, 3)]
    assert np.array_equal(photos_[1], decode(paths[1].read_bytes(), "rgb"))


def test_files_that_are_no_photos_are_named_together(folder: Path, cache: Path) -> None:
    (folder / "red" / "empty.jpg").write_bytes(b"")
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / "blue" / "cut.png").write_bytes((folder / "blue" / "1.png").read_bytes()[:300])
    huge = Image.new("1", (20_000, 20_000))
    huge.save(folder / "green" / "huge.png")
    with pytest.raises(DataError) as refusal:
        open_photos(folder)
    message = str(refusal.value)
    assert message.startswith("4 of 19 files")
    for name, reason in (
        ("empty.jpg", "empty"),
        ("notes.txt", "something else"),
        ("cut.png", "truncated"),
        ("huge.png", "pixels"),
    ):
        assert any(name in line and reason in line for line in message.splitlines()), message
    assert not list(cache.iterdir()), "nothing is kept of what failed"


def test_gray_and_transparent_photos_become_rgb(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "mixed" / name).mkdir(parents=True)
        Image.new("L", (70, 60), 90).save(tmp_path / "mixed" / name / "gray.png")
        Image.new("RGBA", (70, 60), (0, 0, 0, 0)).save(tmp_path / "mixed" / name / "clear.png")
    images = torch.cat([images for images, _ in open_photos(tmp_path / "mixed").test_batches()])
    assert set((images * 255).round().unique().tolist()) <= {90.0, 255.0}
