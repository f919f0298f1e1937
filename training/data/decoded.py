"""Photos decoded once into one file of bytes, which is mapped into memory: an epoch reads pixels, not JPEG."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from stn_serve.errors import ServingError
from stn_serve.images import Pixels, decode
from training.data.mnist import DataError

Prepare = Callable[[int, Pixels], Pixels]

CHUNK = 64
"""Photos decoded at a time, in threads; bounds the memory."""
SHOWN = 50
"""How many of the files that are no photos an error names; it counts the rest."""


class DecodedPhotos(Sequence[Pixels]):
    """RGB photos in the order of their paths, each `[height, width, 3]`, read from the map.

    Args:
        paths: of the encoded photos: JPEG, PNG, WebP or BMP, within what `stn_serve.images` allows.
        prepare: what is kept of a decoded photo; told its index first.
        name: of what `prepare` does, for a file name.
        cache: folder of decoded files; what has been decoded and prepared before is not done again.

    Raises:
        DataError: some files are no photos; names them together.
    """

    def __init__(self, paths: Sequence[Path], prepare: Prepare, name: str, cache: Path) -> None:
        self.sha256 = _hash_files(paths)
        stem = cache / f"{self.sha256[:24]}-{name}"
        pixels, sizes = Path(f"{stem}.pixels"), Path(f"{stem}.json")
        if not sizes.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _write(paths, prepare, pixels, sizes)
        self._sizes: list[tuple[int, int]] = [(height, width) for height, width in json.loads(sizes.read_text())]
        self._offsets = np.cumsum([0, *(height * width * 3 for height, width in self._sizes)])
        self._bytes = np.memmap(pixels, np.uint8, "r")

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> Pixels:  # type: ignore[override]  # no slices
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._bytes[start:end].reshape(*self._sizes[index], 3)


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _write(paths: Sequence[Path], prepare: Prepare, pixels: Path, sizes: Path) -> None:
    temporary = pixels.with_suffix(f".{id(paths)}.tmp")
    try:
        found, failures = [], []
        with temporary.open("wb") as file:
            for path, photo in _decode_all(paths, prepare):
                if isinstance(photo, str):
                    failures.append(f"{path}: {photo}")
                else:
                    found.append(photo.shape[:2])
                    file.write(photo.tobytes())
        if failures:
            raise DataError(_report(failures, len(paths)))
        temporary.replace(pixels)
        sizes.write_text(json.dumps(found))
    finally:
        temporary.unlink(missing_ok=True)


def _decode_all(paths: Sequence[Path], prepare: Prepare) -> Iterator[tuple[Path, Pixels | str]]:
    """Each photo, or why there is none."""
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            photos = threads.map(lambda index: _decode(paths[index], index, prepare), range(start, start + len(chunk)))
            yield from zip(chunk, photos, strict=True)


def _decode(path: Path, index: int, prepare: Prepare) -> Pixels | str:
    try:
        return prepare(index, decode(path.read_bytes(), "rgb"))
    except (ServingError, OSError) as error:
        return str(error)


def reduce_photo(photo: Pixels, shorter_side: int) -> Pixels:
    """With this many pixels on its shorter side; one that is smaller stays."""
    height, width = photo.shape[:2]
    factor = shorter_side / min(height, width)
    if factor >= 1:
        return photo
    size = round(width * factor), round(height * factor)
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))


def _report(failures: Sequence[str], count: int) -> str:
    more = f"\n  and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    listed = "\n  ".join(failures[:SHOWN])
    return f"{len(failures)} of {count} files cannot be used as photos; mend or remove them:\n  {listed}{more}"
