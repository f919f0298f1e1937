"""SVHN's full-number format, written as MATLAB 7.3 does: to be read by the code under test."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

Digit = tuple[int, float, float, float, float]
"""Label (10 means 0), left, top, width, height."""

MATLAB_HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Dec  5 21:09:26 2011 HDF5 schema 1.00 ."


def write_digit_struct(path: Path, images: Mapping[str, Sequence[Digit]]) -> None:
    """`digitStruct.mat`: a 512-byte user block, references into `#refs#`, single digits as plain numbers."""
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        refs = file.create_group("#refs#")
        numbers = iter(range(10**9))

        def reference(value: np.ndarray) -> h5py.Reference:
            return refs.create_dataset(f"r{next(numbers)}", data=value).ref

        names, boxes = [], []
        for name, digits in images.items():
            names.append(reference(np.array([[ord(letter)] for letter in name], np.uint16)))
            group = refs.create_group(f"g{next(numbers)}")
            columns = {"label": 0, "left": 1, "top": 2, "width": 3, "height": 4}
            for field, index in columns.items():
                values = [np.array([[float(digit[index])]]) for digit in digits]
                if len(values) == 1:
                    group.create_dataset(field, data=values[0])
                else:
                    group.create_dataset(field, data=np.array([[reference(value)] for value in values], h5py.ref_dtype))
            boxes.append(group.ref)
        struct = file.create_group("digitStruct")
        for field, references in (("name", names), ("bbox", boxes)):
            struct.create_dataset(field, data=np.array(references, h5py.ref_dtype)[:, None])
    with path.open("r+b") as raw:
        raw.write(MATLAB_HEADER)


def write_image(path: Path, size: tuple[int, int], digits: Sequence[Digit]) -> None:
    """A gray PNG in which each digit's box is a brightness of its own: 20 for each step of the label."""
    pixels = np.full((size[1], size[0], 3), 10, np.uint8)
    for label, left, top, width, height in digits:
        rows = slice(max(0, int(top)), max(0, int(top + height)))
        pixels[rows, max(0, int(left)) : max(0, int(left + width))] = 20 * (label % 10) + 30
    Image.fromarray(pixels).save(path)


def write_part(folder: Path, images: Mapping[str, tuple[tuple[int, int], Sequence[Digit]]]) -> None:
    """A folder as SVHN's archives hold: `1.png` and so on, and `digitStruct.mat`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, digits) in images.items():
        write_image(folder / name, size, digits)
    write_digit_struct(folder / "digitStruct.mat", {name: digits for name, (_, digits) in images.items()})


def archive(folder: Path) -> bytes:
    """The folder as its `.tar.gz`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue()
