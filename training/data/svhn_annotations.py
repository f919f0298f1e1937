"""Where the digits are in SVHN's images: `digitStruct.mat`, as MATLAB 7.3 writes it (HDF5).

/digitStruct/name   [N, 1] references to texts, uint16 [length, 1]
/digitStruct/bbox   [N, 1] references to groups of `height`, `label`, `left`, `top`, `width`: each a number [1, 1]
where the image has one digit, and [K, 1] references to numbers where it has more
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5o, h5r, h5s
from numpy.typing import NDArray

from training.data.mnist import DataError

FILE = "digitStruct.mat"
CACHE = "digitStruct.npz"
_ONE = h5s.create_simple((1, 1))
FIELDS = ("left", "top", "width", "height", "label")


@dataclass(frozen=True, slots=True)
class Annotations:
    """Every digit of N images."""

    names: NDArray[np.str_]
    """Of the files, `[N]`."""
    counts: NDArray[np.int64]
    """Digits of each image, `[N]`."""
    digits: NDArray[np.float64]
    """`FIELDS` of every digit, image by image, `[sum(counts), 5]`: boxes in pixels; label 1 to 10, where 10 means 0."""


def read_annotations(folder: Path) -> Annotations:
    """The annotations of a folder of SVHN's, from its cache if that is as old as `digitStruct.mat` is.

    Raises:
        DataError: the file is missing, cut off, or not what SVHN publishes.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(f"{path} is missing; unpack {folder.name}.tar.gz of SVHN there again")
    state = path.stat()
    stamp = np.array([state.st_size, state.st_mtime_ns])
    return _read_cache(folder / CACHE, stamp) or _parse_and_cache(path, folder / CACHE, stamp)


def parse(path: Path) -> Annotations:
    """Read `digitStruct.mat`, through HDF5's own calls: h5py's objects would take four times as long.

    Raises:
        DataError: as for `read_annotations`.
    """
    try:
        with h5py.File(path, "r") as file:
            names, boxes = (file[f"digitStruct/{name}"][:, 0] for name in ("name", "bbox"))
            images = [_digits(file.id, box) for box in boxes]
            texts = np.array([_text(file.id, name) for name in names], np.str_)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise DataError(
            f"{path} cannot be read as SVHN's annotations ({reason}); unpack {path.parent.name}.tar.gz there again"
        ) from error
    if not images or len(images) != len(texts):
        raise DataError(f"{path} has {len(texts)} names and {len(images)} lists of boxes, expected as many, above 0")
    return Annotations(texts, np.array([len(digits) for digits in images]), np.concatenate(images))


def _text(file: h5f.FileID, reference: h5py.Reference) -> str:
    return "".join(map(chr, _read(h5r.dereference(reference, file)).ravel().tolist()))


def _digits(file: h5f.FileID, reference: h5py.Reference) -> NDArray[np.float64]:
    group = h5r.dereference(reference, file)
    columns = [_column(file, group, name) for name in FIELDS]
    return np.stack(columns, axis=-1)


def _column(file: h5f.FileID, group: h5g.GroupID, name: str) -> NDArray[np.float64]:
    values = _read(h5o.open(group, name.encode())).ravel()
    if values.dtype == object:
        values = np.array([_number(h5r.dereference(value, file)) for value in values])
    return values.astype(np.float64)


def _number(dataset: h5d.DatasetID) -> float:
    """A dataset of one number.

    It is not asked for its type and shape, which takes longer than reading it: HDF5 converts the one and checks the
    other.
    """
    value = np.empty((1, 1))
    dataset.read(_ONE, h5s.ALL, value)
    return float(value[0, 0])


def _read(dataset: h5d.DatasetID) -> NDArray[np.generic]:
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, values)
    return values


def _read_cache(path: Path, stamp: NDArray[np.int64]) -> Annotations | None:
    try:
        with np.load(path) as cache:
            if np.array_equal(cache["stamp"], stamp):
                return Annotations(cache["names"], cache["counts"], cache["digits"])
    except (OSError, ValueError, KeyError):
        pass  # none yet, or one that was cut off: it is only a cache
    return None


def _parse_and_cache(path: Path, cache: Path, stamp: NDArray[np.int64]) -> Annotations:
    annotations = parse(path)
    temporary = cache.with_suffix(".tmp.npz")
    try:
        np.savez(
            temporary,
            stamp=stamp,
            names=annotations.names,
            counts=annotations.counts,
            digits=annotations.digits,
        )
        temporary.replace(cache)
    except OSError:
        temporary.unlink(missing_ok=True)  # a folder that is only to be read: parsed again the next time
    return annotations
