"""Digits from disk, from nowhere, and from damaged files."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from training.data import mnist
from training.data.mnist import DataError, load_digits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and no other."""
    monkeypatch.setenv("STN_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mnist").mkdir()
    return tmp_path / "mnist"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that never answers: this address is reserved for documentation."""
    monkeypatch.setattr(mnist, "HOST", "host.invalid")


def write_idx(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Small files in the published format, with their own checksums."""
    random = np.random.default_rng(0)
    arrays, checksums = {}, {}
    for name in mnist.MD5:
        shape = (5, 28, 28) if "images" in name else (5,)
        array = random.integers(0, 10 if len(shape) == 1 else 256, shape).astype(np.uint8)
        content = struct.pack(">BBBB", 0, 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        arrays[name], checksums[name] = array, hashlib.md5(content).hexdigest()
    monkeypatch.setattr(mnist, "MD5", checksums)
    return arrays


def test_reads_the_published_format(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = write_idx(folder, monkeypatch)
    digits = load_digits("mnist")
    assert digits.source == "MNIST"
    np.testing.assert_array_equal(digits.train_images, arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(digits.test_labels, arrays["t10k-labels-idx1-ubyte"])


def test_a_changed_file_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(folder, monkeypatch)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz is not the published file"):
        load_digits("mnist")


def test_a_truncated_file_is_refused_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(folder, monkeypatch)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz cannot be read"):
        load_digits("auto")


@pytest.mark.usefixtures("folder", "unreachable")
def test_without_network_the_small_digits_stand_in_within_seconds() -> None:
    started = time.monotonic()
    digits = load_digits("auto")
    assert time.monotonic() - started < 15  # includes importing scikit-learn
    assert digits.source == "scikit-learn digits"
    assert digits.train_images.shape == (1437, 28, 28)
    assert digits.test_images.shape == (360, 28, 28)
    assert digits.train_images.dtype == np.uint8
    assert digits.train_images.max() == 255
    assert set(digits.test_labels.tolist()) == set(range(10))


@pytest.mark.usefixtures("folder", "unreachable")
def test_without_network_mnist_says_what_to_do() -> None:
    with pytest.raises(DataError, match="cannot be reached; put the four"):
        load_digits("mnist")


def test_hash_tells_data_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(folder, monkeypatch)
    assert load_digits("mnist").sha256 == load_digits("mnist").sha256 != load_digits("scikit-learn").sha256


@pytest.mark.skipif(not os.environ.get("STN_DATA_DIR"), reason="set STN_DATA_DIR to read the real MNIST")
def test_the_real_mnist() -> None:
    digits = load_digits("mnist")
    assert digits.train_images.shape == (60_000, 28, 28)
    assert np.bincount(digits.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
