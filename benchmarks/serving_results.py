"""What `benchmarks.serving` has measured, kept round by round, so that a run that is cut off goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.peers.peer import Way


class Cell(NamedTuple):
    """What is measured over several rounds."""

    model: str
    way: Way
    concurrency: int
    server: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """One measurement of a cell."""

    throughput: float
    """Requests a second."""
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """CPU time of the server's processes for each request."""
    memory_mb: float
    """Of the server's processes, when it has just been measured."""


class Figure(NamedTuple):
    """Over the rounds."""

    median: float
    least: float
    most: float


@dataclass
class Results:
    """All that is known; `save` after each change."""

    rounds: dict[Cell, list[Round]] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)
    """Why a cell has no figures."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why a server was not measured."""
    runs: list[dict[str, str]] = field(default_factory=list)
    """How it came about, the last one last: command line, date, hardware, commit."""

    @classmethod
    def load(cls, path: Path) -> Results:
        """Of a file that `save` has written, or nothing yet."""
        if not path.exists():
            return cls()
        document = json.loads(path.read_text())
        return cls(
            {_cell(entry): [Round(**one) for one in entry["rounds"]] for entry in document["cells"]},
            {_cell(entry): entry["reason"] for entry in document["failures"]},
            document["missing"],
            document["runs"],
        )

    def save(self, path: Path) -> None:
        """As JSON."""
        document = {
            "runs": self.runs,
            "missing": self.missing,
            "failures": [{**_entry(cell), "reason": reason} for cell, reason in self.failures.items()],
            "cells": [
                {**_entry(cell), "rounds": [asdict(one) for one in rounds]} for cell, rounds in self.rounds.items()
            ],
        }
        path.write_text(json.dumps(document, indent=1) + "\n")

    def forget(self, cells: Iterable[Cell]) -> None:
        """To measure them anew."""
        for cell in cells:
            self.rounds.pop(cell, None)
            self.failures.pop(cell, None)

    def count(self, cell: Cell) -> int:
        """Rounds that it has been measured for."""
        return len(self.rounds.get(cell, ()))

    def add(self, cell: Cell, measured: Round) -> None:
        """One more round of a cell."""
        self.failures.pop(cell, None)
        self.rounds.setdefault(cell, []).append(measured)

    def figure(self, cell: Cell, what: str) -> Figure | None:
        """A quantity of `Round`; None where it was not measured."""
        values = [getattr(one, what) for one in self.rounds.get(cell, ())]
        return Figure(median(values), min(values), max(values)) if values else None


def _entry(cell: Cell) -> dict[str, str | int]:
    way = cell.way._asdict()
    return {"model": cell.model, **way, "concurrency": cell.concurrency, "server": cell.server}


def _cell(entry: dict[str, str]) -> Cell:
    way = Way(entry["input"], entry["protocol"], entry["client"])
    return Cell(entry["model"], way, int(entry["concurrency"]), entry["server"])
