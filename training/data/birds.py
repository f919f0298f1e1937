"""Caltech-UCSD Birds-200-2011 (Wah, Branson, Welinder, Perona, Belongie 2011): its official layout, or a part of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, with_config

from training.data.mnist import DataError, reachable
from training.data.photos import Augmentation, Photo, PhotoList
from training.data.tables import read_table

FOLDER = "CUB_200_2011"
HOST = "data.caltech.edu"
ARCHIVE = "/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True, slots=True)
class BirdsData:
    """Which birds, and at what size."""

    family: Literal["birds"]
    path: str | None = None
    """The folder `CUB_200_2011`; by default the one in `$STN_DATA_DIR` or the user's cache, or a download of 1.1 GB."""
    size: int = 448
    """Height and width of the images."""
    augmentation: Augmentation = field(default_factory=Augmentation)


def list_birds(path: str | None) -> PhotoList:
    """All photos that are there, on the official split.

    Raises:
        DataError: the data set is not there, or its tables do not fit together.
    """
    folder = find_birds(path)
    files, classes, split, names = (
        dict(read_table(folder / f"{table}.txt"))
        for table in ("images", "image_class_labels", "train_test_split", "classes")
    )
    index = {key: position for position, key in enumerate(names)}
    try:
        photos = {key: Photo(folder / "images" / name, index[classes[key]]) for key, name in files.items()}
        train = tuple(photo for key, photo in photos.items() if split[key] == "1")
        test = tuple(photo for key, photo in photos.items() if split[key] != "1")
    except KeyError as error:
        raise DataError(f"{folder}: its tables do not fit together: there is no entry {error}") from error
    if not train or not test:
        raise DataError(f"{folder}: {len(train)} photos to train and {len(test)} to test; a part needs some of both")
    return PhotoList(
        source=f"CUB-200-2011, {len(names)} classes",
        labels=tuple(map(_species, names.values())),
        train=train,
        test=test,
    )


def find_birds(path: str | None) -> Path:
    """The folder of the data set, downloaded where there is none and the network allows.

    Raises:
        DataError: it cannot be had.
    """
    if path:
        if not (Path(path) / "images.txt").is_file():
            raise DataError(f"data.path: {path} holds no images.txt; expected the folder {FOLDER} as it is published")
        return Path(path)
    candidates = _candidates()
    return next((folder for folder in candidates if (folder / "images.txt").is_file()), None) or _download(candidates)


def _candidates() -> list[Path]:
    import pooch

    configured = os.environ.get("STN_DATA_DIR")
    roots = [Path(configured)] if configured else []
    return [root / FOLDER for root in (*roots, Path(pooch.os_cache("stn-serve")))]


def _download(candidates: list[Path]) -> Path:
    import pooch

    if not reachable(HOST):
        raise DataError(
            f"CUB-200-2011 is not in {' or '.join(map(str, candidates))} and {HOST} cannot be reached; unpack "
            f"{FOLDER}.tgz there, or give data.path"
        )
    cache = candidates[-1].parent
    try:
        pooch.retrieve(
            f"https://{HOST}{ARCHIVE}",
            f"md5:{MD5}",
            f"{FOLDER}.tgz",
            cache,
            processor=pooch.Untar(extract_dir="."),
            downloader=pooch.HTTPDownloader(progressbar=False, timeout=60),
        )
    except (OSError, ValueError) as error:
        raise DataError(f"CUB-200-2011 cannot be downloaded from {HOST}: {error}") from error
    return candidates[-1]


def _species(name: str) -> str:
    """`001.Black_footed_Albatross` for people."""
    return name.partition(".")[2].replace("_", " ")
