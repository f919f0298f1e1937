"""What a model's files look like from outside: enough to notice that they have changed, without reading them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """Differs when a file was written to, or another one was moved into its place, whatever time that one carries."""

    modified_ns: int
    size: int
    inode: int


Files = dict[str, FileState]
"""By path below the model's directory. Hidden files are left out: editors and copying programs have theirs there."""


def model_files(directory: Path) -> Files:
    """Every file and folder of a model as it is now; what vanishes meanwhile is left out."""
    return dict(_walk(directory, ""))


def version_files(files: Files, version: int) -> Files:
    """Those that one version is made of: its own, and the configuration, labels and warm-up data of all."""
    return {path: state for path, state in files.items() if _owner(path) in (None, str(version))}


def _owner(path: str) -> str | None:
    """The version whose file it is."""
    first, slash, _ = path.partition("/")
    return first if slash and first.isdecimal() else None


def _walk(directory: Path, prefix: str) -> Iterator[tuple[str, FileState]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            state = entry.stat()
        except OSError:
            continue
        path = prefix + entry.name
        if stat.S_ISDIR(state.st_mode):
            yield f"{path}/", FileState(0, 0, state.st_ino)
            yield from _walk(Path(entry.path), f"{path}/")
        elif stat.S_ISREG(state.st_mode):
            yield path, FileState(state.st_mtime_ns, state.st_size, state.st_ino)
