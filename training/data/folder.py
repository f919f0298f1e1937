"""Anybody's photos: a folder for each class, in one tree or in `train/` and `test/`."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, with_config

from training.data.mnist import DataError
from training.data.photos import Augmentation, Photo, PhotoList

LAYOUT = "expected PATH/CLASS/photo.jpg, or PATH/train/CLASS/photo.jpg with PATH/test/CLASS/photo.jpg"
TRAIN, TEST = "train", "test"
SPLIT_SEED = 20150605


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class FolderData:
    """Which photos, and at what size."""

    family: Literal["folder"]
    path: str
    """Holds a folder for each class, or `train` and `test`, which do."""
    test_fraction: float = 0.2
    """Share of each class that is tested where there is no `test` folder; always the same photos."""
    size: int = 448
    """Height and width of the images."""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number between 0 and 1, got {self.test_fraction}")


def list_folder(path: str | Path, test_fraction: float) -> PhotoList:
    """The files of each class; none is opened yet. Files whose names begin with a dot are passed over.

    Raises:
        DataError: no such folder, neither layout, or a class without photos to learn from or to test on.
    """
    if not str(path):
        raise DataError("data.path: give the folder of your photos, as in `stn train photos --set data.path=my_photos`")
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"data.path: there is no folder {path}; {LAYOUT}")
    folders = [entry.name for entry in _visible(path) if entry.is_dir()]
    if {TRAIN, TEST} & set(folders):
        train, test = _read_split(path, folders)
    else:
        train, test = _split(_read_classes(path), test_fraction)
    labels = tuple(train)
    if len(labels) < 2:
        raise DataError(f"{path} has photos of {len(labels)} class, a classifier needs 2 or more; {LAYOUT}")
    return PhotoList(
        source=f"photos in {path.name} ({len(labels)} classes)",
        labels=labels,
        train=tuple(_photos(train, labels)),
        test=tuple(_photos(test, labels)),
    )


Classes = dict[str, list[Path]]


def _read_split(path: Path, folders: list[str]) -> tuple[Classes, Classes]:
    if set(folders) != {TRAIN, TEST}:
        raise DataError(f"{path} holds {', '.join(folders)}: a class cannot stand beside train and test; {LAYOUT}")
    train, test = _read_classes(path / TRAIN), _read_classes(path / TEST)
    if train.keys() != test.keys():
        odd = ", ".join(sorted(train.keys() ^ test.keys()))
        raise DataError(f"{path}: train and test must have the same classes; these are in one of them only: {odd}")
    return train, test


def _read_classes(folder: Path) -> Classes:
    entries = _visible(folder)
    loose = [entry.name for entry in entries if not entry.is_dir()]
    if loose and len(loose) == len(entries):
        raise DataError(f"{folder} holds {len(loose)} files such as {loose[0]}, and no folder of a class; {LAYOUT}")
    classes = {entry.name: _visible(entry) for entry in entries if entry.is_dir()}
    nested = [str(file) for files in classes.values() for file in files if file.is_dir()]
    if nested:
        raise DataError(f"there are folders inside of classes, such as {nested[0]}; {LAYOUT}")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(f"{folder} has classes without photos: {', '.join(empty)}; fill or remove them")
    return classes


def _split(classes: Classes, test_fraction: float) -> tuple[Classes, Classes]:
    single = [name for name, files in classes.items() if len(files) < 2]
    if single:
        raise DataError(
            f"classes with one photo cannot be split for training and testing: {', '.join(single)}; add photos, or "
            "give train and test folders"
        )
    train, test = {}, {}
    for name, files in classes.items():
        shuffled = random.Random(f"{SPLIT_SEED} {name}").sample(files, len(files))  # noqa: S311 - not a secret
        count = min(max(1, round(len(files) * test_fraction)), len(files) - 1)
        test[name], train[name] = sorted(shuffled[:count]), sorted(shuffled[count:])
    return train, test


def _photos(classes: Classes, labels: tuple[str, ...]) -> Iterable[Photo]:
    return (Photo(file, index) for index, label in enumerate(labels) for file in classes[label])


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
