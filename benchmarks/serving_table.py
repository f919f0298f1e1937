"""The results of `benchmarks.serving` as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import Way
from benchmarks.serving_results import Cell, Results

MILLISECONDS = ("p50_ms", "p99_ms")


def render(results: Results) -> str:
    """A table for each model and way to ask, and what was not measured."""
    run = results.run
    seen = dict.fromkeys((cell.model, cell.way) for cell in results.rounds if cell.way.protocol != "none")
    sections = "\n".join(_section(results, model, way) for model, way in seen)
    return f"""# Serving, side by side

`{run["command"]}`, {run["date"]}, commit {run["commit"]}, {run["hardware"]}, which the load generator shares. Closed
loop: so many callers who wait for their answers. Medians over the rounds, in brackets the least and the most. CPU is
that of all the server's processes for each request, the steadiest figure on a busy machine; memory is their
proportional set size.

{sections}
{_failures(results)}"""


def _section(results: Results, model: str, way: Way) -> str:
    cells = [cell for cell in results.rounds if (cell.model, cell.way) == (model, way)]
    rows = [
        row
        for concurrency in sorted({cell.concurrency for cell in cells})
        for row in _rows(results, model, way, concurrency)
    ]
    title = f"{model}: {'encoded image' if way.input == 'jpeg' else 'tensor'} over {way.protocol}, {way.client}"
    return (
        f"""## {title}

| callers | server | requests/s | p50 ms | p99 ms | CPU ms | memory MB | rounds |
|---:|---|---:|---:|---:|---:|---:|---:|
"""
        + "\n".join(rows)
        + "\n"
    )


def _rows(results: Results, model: str, way: Way, concurrency: int) -> Iterator[str]:
    for peer in PEERS.values():
        for asked in (way, *(other for other in peer.ways if other.protocol == "none")):
            cell = Cell(model, asked, concurrency, peer.name)
            if results.count(cell):
                yield _row(results, cell, peer.title)


def _row(results: Results, cell: Cell, title: str) -> str:
    figures = [_figure(results, cell, what) for what in ("throughput", *MILLISECONDS, "cpu_ms")]
    memory = results.figure(cell, "memory_mb")
    shown = f"{memory.median:.0f}" if memory else ""
    return f"| {cell.concurrency} | {title} | {' | '.join(figures)} | {shown} | {results.count(cell)} |"


def _figure(results: Results, cell: Cell, what: str) -> str:
    figure = results.figure(cell, what)
    return f"{_number(figure.median)} ({_number(figure.least)}-{_number(figure.most)})" if figure else ""


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _failures(results: Results) -> str:
    lines = [f"- {PEERS[name].title}: {reason}" for name, reason in results.missing.items()]
    lines += [
        f"- {PEERS[cell.server].title}, {cell.model}, {' '.join(cell.way)}, {cell.concurrency} at once: {reason}"
        for cell, reason in results.failures.items()
    ]
    return "\n## Not measured\n\n" + "\n".join(lines) + "\n" if lines else ""
