"""The results of `benchmarks.serving` as Markdown."""

from __future__ import annotations

from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import Way
from benchmarks.serving_results import Cell, Results

OVERVIEW = 16
"""Callers."""
PROTOCOLS = {"grpc": "gRPC", "http": "HTTP"}
SPREAD = ("throughput", "p50_ms", "p99_ms", "cpu_ms")


def render(results: Results) -> str:
    """A table for each model and way to ask, and what was not measured."""
    run = results.runs[-1]
    sections = "\n".join(_section(results, model, way) for model, way in _asked(results))
    return f"""# Serving, side by side

`python -m benchmarks.serving`, {run["date"]}, {run["hardware"]}, which the load generator shares; all command lines
are below. Closed loop: so many callers who wait for their answers. Medians over the rounds, in brackets the least and
the most. CPU is that of all the server's processes for each request, the steadiest figure on a busy machine; memory is
their proportional set size. The bare loop computes batches of as many images as there are callers, or as the model
takes.

{_servers(results)}

perf_analyzer is NVIDIA's load generator, for servers that speak as Triton does. h2load sends to any server, here with a
connection for each caller: over HTTP to `stn serve` and Triton the tensor's bytes with Triton's binary extension.

{_overview(results)}
{sections}
{_failures(results)}
## Runs

{_runs(results)}
"""


def _servers(results: Results) -> str:
    measured = {cell.server for cell in results.rounds}
    return "\n".join(f"- {peer.title}: {peer.note}" for peer in PEERS.values() if peer.name in measured)


def _runs(results: Results) -> str:
    return "\n".join(f"- {run['date']}, commit {run['commit']}: `{run['command']}`" for run in results.runs)


def _overview(results: Results) -> str:
    """The medians at one concurrency, a column for each server; the bare loop stands beside every way to ask."""
    peers = [peer for peer in PEERS.values() if any(cell.server == peer.name for cell in results.rounds)]
    lines = []
    for model, way in _asked(results):
        cells = {cell.server: cell for cell in results.rounds if _belongs(cell, model, way, OVERVIEW)}
        if len(cells) > 1:
            figures = [results.figure(cells[peer.name], "throughput") if peer.name in cells else None for peer in peers]
            shown = " | ".join(_number(figure.median) if figure else "" for figure in figures)
            lines.append(f"| {model} | {_title(way)} | {shown} |")
    head = f"| model | asked | {' | '.join(peer.title for peer in peers)} |\n|---|---|{'---:|' * len(peers)}"
    return "\n".join([f"## Requests a second, {OVERVIEW} callers", "", head, *lines, ""])


def _asked(results: Results) -> list[tuple[str, Way]]:
    return list(dict.fromkeys((cell.model, cell.way) for cell in results.rounds if not cell.way.is_bare))


def _belongs(cell: Cell, model: str, way: Way, concurrency: int) -> bool:
    return cell.model == model and (cell.way == way or cell.way.is_bare) and cell.concurrency == concurrency


def _title(way: Way) -> str:
    return f"{'encoded image' if way.input == 'jpeg' else 'tensor'} over {PROTOCOLS[way.protocol]}, {way.client}"


def _section(results: Results, model: str, way: Way) -> str:
    concurrencies = sorted({cell.concurrency for cell in results.rounds if (cell.model, cell.way) == (model, way)})
    lines = [
        f"## {model}: {_title(way)}",
        "",
        "| callers | server | requests/s | p50 ms | p99 ms | CPU ms | memory MB | rounds |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for concurrency in concurrencies:
        cells = {cell.server: cell for cell in results.rounds if _belongs(cell, model, way, concurrency)}
        lines += [_row(results, cells[peer.name], peer.title) for peer in PEERS.values() if peer.name in cells]
    return "\n".join([*lines, ""])


def _row(results: Results, cell: Cell, title: str) -> str:
    figures = [_figure(results, cell, what) for what in SPREAD]
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
