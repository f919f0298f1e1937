"""Metrics as plain values: what a process has counted, how several processes add up, and Prometheus' text of it.

A snapshot is a list of `Family`, and nothing in it refers to the process it was taken in. Where several processes
serve, each sends `dump(snapshot)`, and the one that is scraped answers `render(merge([load(data), ...]))`. A process
that has ended must not take its counts along, or the sum would fall, and Prometheus would take that for a restart of
all of them: of its last snapshot, `lasting(snapshot)` stays among those that are merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max"]

Labels = tuple[tuple[str, str], ...]
"""Names and values, in the order of the names, as Triton writes them."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """What a histogram has counted."""

    bounds: tuple[float, ...]
    """Largest value of each bucket; one more bucket holds what is larger than all of them."""
    counts: tuple[int, ...]
    """Values in each bucket alone, not cumulated."""
    sum: float

    def __add__(self, other: object) -> Buckets:
        """Both together.

        Raises:
            ValueError: they have other bounds.
        """
        if not isinstance(other, Buckets) or other.bounds != self.bounds:
            raise ValueError(f"histograms with different buckets: {self.bounds} and {other}")
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return Buckets(self.bounds, counts, self.sum + other.sum)


Value = float | Buckets


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all of its series."""

    name: str
    kind: Kind
    help: str
    samples: Mapping[Labels, Value] = field(default_factory=dict)
    merge: Merge = "sum"
    """How the gauges of several processes become one; counters and histograms are always added up."""


def labels(**values: str) -> Labels:
    """Labels in their order."""
    return tuple(sorted(values.items()))


def merge(snapshots: Iterable[Sequence[Family]]) -> list[Family]:
    """What several processes have counted together; families keep the order in which they come first."""
    merged: dict[str, Family] = {}
    for family in (family for snapshot in snapshots for family in snapshot):
        known = merged.get(family.name)
        merged[family.name] = _merge_two(known, family) if known else family
    return list(merged.values())


def lasting(snapshot: Sequence[Family]) -> list[Family]:
    """What remains of a process that has ended: what it counted, but not the state it was in."""
    return [family for family in snapshot if family.kind != "gauge"]


def dump(snapshot: Sequence[Family]) -> bytes:
    """A snapshot as JSON, for another process."""
    return orjson.dumps([{**_fields(family), "samples": list(family.samples.items())} for family in snapshot])


def load(data: bytes) -> list[Family]:
    """The snapshot that another process has dumped."""
    return [
        Family(**{**fields, "samples": {_labels(names): _value(value) for names, value in fields["samples"]}})
        for fields in orjson.loads(data)
    ]


def render(snapshot: Sequence[Family]) -> str:
    """Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for family in snapshot for line in _lines(family))


def _merge_two(known: Family, other: Family) -> Family:
    samples = dict(known.samples)
    for key, value in other.samples.items():
        samples[key] = _merge_values(known.merge, samples[key], value) if key in samples else value
    return replace(known, samples=samples)


def _merge_values(how: Merge, known: Value, other: Value) -> Value:
    if isinstance(known, Buckets):
        return known + other
    if isinstance(other, Buckets):
        raise ValueError(f"a histogram {other} in the place of a number")  # noqa: TRY004 - as with other bounds
    return max(known, other) if how == "max" else known + other


def _fields(family: Family) -> dict[str, str]:
    return {"name": family.name, "kind": family.kind, "help": family.help, "merge": family.merge}


def _labels(names: list[list[str]]) -> Labels:
    return tuple((name, value) for name, value in names)


def _value(value: Any) -> Value:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return Buckets(tuple(value["bounds"]), tuple(value["counts"]), value["sum"])
    return float(value) if isinstance(value, float) else int(value)


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {_escape(family.help)}"
    yield f"# TYPE {family.name} {family.kind}"
    for names, value in family.samples.items():
        if isinstance(value, Buckets):
            yield from _bucket_lines(family.name, names, value)
        else:
            yield f"{family.name}{_braces(names)} {value}"


def _bucket_lines(name: str, names: Labels, buckets: Buckets) -> Iterator[str]:
    cumulated = 0
    for bound, count in zip((*buckets.bounds, None), buckets.counts, strict=True):
        cumulated += count
        le = "+Inf" if bound is None else f"{bound:.12g}"
        yield f"{name}_bucket{_braces((*names, ('le', le)))} {cumulated}"
    yield f"{name}_sum{_braces(names)} {buckets.sum}"
    yield f"{name}_count{_braces(names)} {cumulated}"


def _braces(names: Labels) -> str:
    pairs = ",".join('{}="{}"'.format(name, _escape(value).replace('"', r"\"")) for name, value in names)
    return f"{{{pairs}}}" if pairs else ""


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
