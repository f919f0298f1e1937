"""A user's own photos: the layouts that are read, and what is said of all others before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from photo_sets import COLORS, write_classes, write_photo

from training.data.folder import list_folder
from training.data.mnist import DataError


def test_one_tree_is_split_class_by_class(tmp_path: Path) -> None:
    write_classes(tmp_path)
    photos = list_folder(tmp_path, 0.4)
    assert photos.labels == tuple(sorted(COLORS))
    for part, count in ((photos.train, 3), (photos.test, 2)):
        assert sorted(photo.label for photo in part) == sorted([0, 1, 2] * count)
        assert all(photo.path.parent.name == photos.labels[photo.label] for photo in part)
    assert not {photo.path for photo in photos.train} & {photo.path for photo in photos.test}
    assert photos == list_folder(tmp_path, 0.4)


def test_a_new_photo_of_one_class_moves_none_of_another_to_the_test_set(tmp_path: Path) -> None:
    write_classes(tmp_path)
    before = {photo.path for photo in list_folder(tmp_path, 0.4).test if photo.path.parent.name != "red"}
    write_photo(tmp_path / "red" / "new.png", "red")
    assert {photo.path for photo in list_folder(tmp_path, 0.4).test if photo.path.parent.name != "red"} == before


def test_given_splits_are_kept(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 3)
    write_classes(tmp_path / "test", 1)
    photos = list_folder(tmp_path, 0.5)
    assert (len(photos.train), len(photos.test)) == (9, 3)
    assert all(photo.path.parts[-3] == "test" for photo in photos.test)


def test_files_of_the_desktop_and_notes_beside_classes_are_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "red" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "README.txt").write_text("mine")
    assert len(list_folder(tmp_path, 0.2).train) == 12


def test_a_recipe_without_a_path_asks_for_one() -> None:
    with pytest.raises(DataError, match=r"--set data\.path=my_photos"):
        list_folder("", 0.2)


def _no_folder(_: Path) -> None:
    pass


def _loose(folder: Path) -> None:
    write_photo(folder / "1.png", "red")


def _nested(folder: Path) -> None:
    write_photo(folder / "birds" / "red" / "1.png", "red")
    write_photo(folder / "cats" / "red" / "1.png", "red")


def _empty_classes(folder: Path) -> None:
    write_classes(folder)
    (folder / "ghost").mkdir()
    (folder / "nothing").mkdir()


def _one_class(folder: Path) -> None:
    for index in range(3):
        write_photo(folder / "red" / f"{index}.png", "red")


def _single_photo(folder: Path) -> None:
    write_classes(folder)
    write_photo(folder / "lonely" / "1.png", "red")


def _train_alone(folder: Path) -> None:
    write_classes(folder / "train")


def _mixed(folder: Path) -> None:
    write_classes(folder / "train")
    write_classes(folder / "test")
    write_photo(folder / "red" / "1.png", "red")


def _other_classes(folder: Path) -> None:
    write_classes(folder / "train")
    write_classes(folder / "test")
    write_photo(folder / "test" / "yellow" / "1.png", "red")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_no_folder, ["no folder", "photos"]),
        (_loose, ["1 files such as 1.png", "PATH/CLASS/photo.jpg"]),
        (_nested, ["folders inside of classes", "red"]),
        (_empty_classes, ["without photos", "ghost, nothing"]),
        (_one_class, ["1 class", "2 or more"]),
        (_single_photo, ["lonely", "one photo"]),
        (_train_alone, ["train", "PATH/test/CLASS"]),
        (_mixed, ["red", "beside train and test"]),
        (_other_classes, ["yellow", "the same classes"]),
    ],
)
def test_other_layouts_are_refused_with_what_was_expected(
    write: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    write(folder)
    with pytest.raises(DataError) as refusal:
        list_folder(folder, 0.2)
    assert all(word in str(refusal.value) for word in words), refusal.value
