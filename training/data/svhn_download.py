"""SVHN's archives: fetched, resumed where they were cut off, checked, unpacked."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx

from training.data.mnist import DataError

URL = "http://ufldl.stanford.edu/housenumbers"
SIZES = {"train": 404_141_560, "test": 276_555_967, "extra": 1_955_489_752}
"""Bytes of the archives, as published. There are no published checksums; gzip's own guard the contents."""
UNPACKED = 1.2
"""What unpacking takes on the disk, against the archive, at most: PNGs do not compress."""
SECONDS_TO_CONNECT = 10.0

Watch = Callable[[int, int], None]
"""Told of the bytes there, and of all."""


def download_part(
    part: str, root: Path, watch: Watch | None = None, *, url: str = URL, size: int | None = None
) -> None:
    """Fetch and unpack `root/part`; a download that was cut off goes on.

    Args:
        part: `train`, `test` or `extra`.
        root: SVHN's folder.
        watch: told of progress.
        url: where the archives are.
        size: of the archive in bytes; by default the published one.

    Raises:
        DataError: it cannot be had, is damaged, or the disk is too small for it.
    """
    archive, expected = root / f"{part}.tar.gz", size or SIZES[part]
    root.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        _check_disk(root, archive, expected)
        _fetch(f"{url}/{archive.name}", archive, expected, watch)
    elif archive.stat().st_size != expected:
        found = archive.stat().st_size
        raise DataError(f"{archive} has {found:,} bytes, published are {expected:,}; delete it and run again")
    _unpack(archive, part)
    archive.unlink()


def _check_disk(root: Path, archive: Path, expected: int) -> None:
    partial = _partial(archive)
    there = partial.stat().st_size if partial.exists() else 0
    needed = expected - there + round(UNPACKED * expected)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f"{archive.name} needs {needed / 1e9:.1f} GB in {root}, {free / 1e9:.1f} GB are free; make room, or set "
            "STN_DATA_DIR to a larger disk"
        )


def _fetch(url: str, archive: Path, expected: int, watch: Watch | None) -> None:
    partial = _partial(archive)
    there = partial.stat().st_size if partial.exists() else 0
    if there < expected:
        try:
            _append(url, partial, there, expected, watch)
        except (httpx.HTTPError, OSError) as error:
            kept = partial.stat().st_size if partial.exists() else 0
            raise DataError(
                f"{url}: {error.__class__.__name__} {error}; {kept:,} of {expected:,} bytes are in {partial}. Run "
                f"again to go on, or put {archive.name} into {archive.parent} yourself"
            ) from error
    found = partial.stat().st_size
    if found != expected:
        partial.unlink()
        raise DataError(f"{url} has {found:,} bytes, published are {expected:,}; it was deleted, run again")
    partial.replace(archive)


def _append(url: str, partial: Path, there: int, expected: int, watch: Watch | None) -> None:
    headers = {"Range": f"bytes={there}-"} if there else {}
    timeout = httpx.Timeout(60.0, connect=SECONDS_TO_CONNECT)
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=timeout) as answer:
        answer.raise_for_status()
        resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
        with partial.open("ab" if resumed else "wb") as file:  # a server without ranges begins anew
            for chunk in answer.iter_raw():
                file.write(chunk)
                if watch:
                    watch(file.tell(), expected)


def _unpack(archive: Path, part: str) -> None:
    """Into a folder of its own first, so that half a set never looks like a whole one."""
    fresh = archive.parent / f"{part}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=content, mode="r|") as tar:
            tar.extractall(fresh, filter="data")
            while content.read(1 << 20):
                pass  # to the end, where gzip checks all of it
        shutil.rmtree(archive.parent / part, ignore_errors=True)
        (fresh / part).replace(archive.parent / part)
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"{archive} is damaged ({error.__class__.__name__}: {error}); delete it and run again"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _partial(archive: Path) -> Path:
    return archive.with_name(archive.name + ".part")
