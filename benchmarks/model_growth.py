"""What networks cost as their images grow, and as they get more transformers: ONNX Runtime, float32, one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from benchmarks.model_files import Subject, named, paper, photos
from benchmarks.model_times import session_program
from benchmarks.training_speed import time_rounds
from export.onnx_export import export_onnx

SIZES = (32, 48, 64, 96, 128)
TRANSFORMERS = (1, 2, 3, 4)
ROUNDS = 60
ENOUGH_S = 25.0


class Growth(NamedTuple):
    """Milliseconds of an image, and the middle 80 % of the rounds."""

    network: str
    grows: str
    """`size` or `transformers`."""
    value: int
    ms: float
    low_ms: float
    high_ms: float
    megabytes: float


def measure(folder: Path, threads: int) -> list[Growth]:
    """Both: all sizes of one network take turns, and all numbers of transformers."""
    return [
        row
        for grows, files in (("size", sizes(folder)), ("transformers", transformers(folder)))
        for row in _time(grows, files, threads)
    ]


def sizes(folder: Path) -> dict[tuple[str, int], tuple[Subject, Path]]:
    """The paper's networks for images of each size."""
    found = {(subject.name, size): subject for size in SIZES for subject in paper(size).values()}
    return {key: (subject, _file(subject, folder / f"{key[0]}-{key[1]}px.onnx")) for key, subject in found.items()}


def transformers(folder: Path) -> dict[tuple[str, int], tuple[Subject, Path]]:
    """The birds' network with each number of transformers; what it costs without any, benchmarks.birds says."""
    [birds] = named(["birds"])
    found = {("birds", count): photos(count, birds) for count in TRANSFORMERS}
    return {key: (subject, _file(subject, folder / f"birds-{key[1]}x.onnx")) for key, subject in found.items()}


def _file(subject: Subject, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(subject.network(), subject.labels, path)
    return path


def _time(grows: str, files: dict[tuple[str, int], tuple[Subject, Path]], threads: int) -> Iterator[Growth]:
    programs: dict[tuple[str, int], Callable[[], object]] = {
        key: session_program(path, threads, subject.images(1)) for key, (subject, path) in files.items()
    }
    for key, seconds in time_rounds(programs, ROUNDS, enough_s=ENOUGH_S).items():
        low, *_, high = (round(1e3 * second, 3) for second in quantiles(seconds, n=10))
        megabytes = round(files[key][1].stat().st_size / 1e6, 1)
        yield Growth(key[0], grows, key[1], round(1e3 * median(seconds), 3), low, high, megabytes)
