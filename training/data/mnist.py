"""Where handwritten digits come from: MNIST on disk, MNIST by download, or the small set that scikit-learn carries."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Source = Literal["auto", "mnist", "scikit-learn"]
Images = NDArray[np.uint8]

HOST = "ossci-datasets.s3.amazonaws.com"
SECONDS_TO_NOTICE_NO_NETWORK = 4.0

# Of the uncompressed files: mirrors compress them anew.
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(ValueError):
    """A data set that is missing or damaged; says which file and what to do."""


@dataclass(frozen=True, slots=True)
class DigitSet:
    """Digits as 28x28 gray images: white strokes on black, `[N, 28, 28]`, with labels `[N]`."""

    source: str
    train_images: Images
    train_labels: Images
    test_images: Images
    test_labels: Images

    @property
    def sha256(self) -> str:
        """Of all images and labels, so that a model can say what it was trained on."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array.tobytes())
        return digest.hexdigest()


def load_digits(source: Source = "auto") -> DigitSet:
    """The digits.

    Args:
        source: `mnist` reads `$STN_DATA_DIR/mnist` or downloads it there (or into the user's cache); `scikit-learn`
            takes the 1,797 8x8 digits that come with that package, enlarged; `auto` is the first of the two that can
            be had.

    Raises:
        DataError: MNIST is asked for and cannot be had, or a file of it is damaged.
    """
    if source == "scikit-learn":
        return _scikit_learn_digits()
    directory = _find_mnist()
    if directory is None and source == "auto" and not reachable(HOST):
        return _scikit_learn_digits()
    return _read_mnist(directory or _download_mnist())


def _candidates() -> list[Path]:
    import pooch

    configured = os.environ.get("STN_DATA_DIR")
    roots = [Path(configured)] if configured else []
    return [root / "mnist" for root in (*roots, Path(pooch.os_cache("stn-serve")))]


def _find_mnist() -> Path | None:
    for directory in _candidates():
        if all((directory / f"{name}.gz").is_file() for name in MD5):
            return directory
    return None


def _download_mnist() -> Path:
    import pooch

    if not reachable(HOST):
        raise DataError(
            f"MNIST is not in {' or '.join(map(str, _candidates()))} and {HOST} cannot be reached; put the four .gz "
            "files there, or use data.source='scikit-learn'"
        )
    writable = [path for path in _candidates() if os.access(_existing_parent(path), os.W_OK)]
    for name in MD5:
        downloader = pooch.HTTPDownloader(progressbar=False, timeout=30)
        pooch.retrieve(f"https://{HOST}/mnist/{name}.gz", None, f"{name}.gz", path=writable[0], downloader=downloader)
    return writable[0]


def _existing_parent(path: Path) -> Path:
    return path if path.exists() else _existing_parent(path.parent)


def reachable(host: str) -> bool:
    """Whether a connection opens in time. In a thread: looking up a name can hang where connecting would not."""
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=SECONDS_TO_NOTICE_NO_NETWORK).close()
        except OSError:
            return
        answers.append(True)

    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS_TO_NOTICE_NO_NETWORK)
    return bool(answers)


def _read_mnist(directory: Path) -> DigitSet:
    train_images, train_labels, test_images, test_labels = (_read_idx(directory, name) for name in MD5)
    return DigitSet("MNIST", train_images, train_labels, test_images, test_labels)


def _read_idx(directory: Path, name: str) -> Images:
    path = directory / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it to download it again") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
        raise DataError(f"{path} is not the published file (its md5 differs); delete it to download it again")
    rank = content[3]
    shape = struct.unpack_from(f">{rank}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def _scikit_learn_digits() -> DigitSet:
    from PIL import Image
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.zeros((len(digits.images), 28, 28), np.uint8)
    for canvas, digit in zip(images, digits.images, strict=True):  # 8x8, values 0 to 16; MNIST's digits span 20 pixels
        small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))
        canvas[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
    labels = digits.target.astype(np.uint8)
    test = np.arange(len(images)) % 5 == 0
    return DigitSet("scikit-learn digits", images[~test], labels[~test], images[test], labels[test])
