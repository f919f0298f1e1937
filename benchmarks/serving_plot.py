"""The results of `benchmarks.serving` as a picture: throughput against the callers at once."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import BARE, Way
from benchmarks.serving_results import Results

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes


def plot(results: Results, path: Path) -> None:
    """A row for each model, a column for each way to ask; the lines are medians, the bars least and most."""
    asked = {(cell.model, cell.way) for cell in results.rounds if not cell.way.is_bare}
    if not asked:
        return
    models = [model for model in dict.fromkeys(cell.model for cell in results.rounds) if model in dict(asked)]
    ways = sorted({way for _, way in asked}, key=lambda way: (way.input != "tensor", way.client, way.protocol))
    figure, grid = plt.subplots(len(models), len(ways), figsize=(4 * len(ways), 3.2 * len(models)), squeeze=False)
    labels: dict[str, Artist] = {}
    for row, model in zip(grid, models, strict=True):
        for axes, way in zip(row, ways, strict=True):
            if (model, way) in asked:
                labels |= _draw(axes, results, model, way)
            else:
                axes.set_axis_off()
    shown = [peer.title for peer in PEERS.values() if peer.title in labels]
    figure.legend([labels[title] for title in shown], shown, loc="lower center", ncols=5)
    figure.tight_layout(rect=(0, 0.2 / len(models), 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw(axes: Axes, results: Results, model: str, way: Way) -> dict[str, Artist]:
    """What its lines are called."""
    labels: dict[str, Artist] = {}
    for number, peer in enumerate(PEERS.values()):
        cells = [cell for cell in results.rounds if cell.model == model and cell.server == peer.name]
        cells = sorted(cell for cell in cells if cell.way == way or cell.way.is_bare)
        figures = [figure for cell in cells if (figure := results.figure(cell, "throughput"))]
        if figures:
            labels[peer.title] = axes.errorbar(
                [cell.concurrency for cell in cells],
                [figure.median for figure in figures],
                [[one.median - one.least for one in figures], [one.most - one.median for one in figures]],
                fmt="k--_" if peer.ways == (BARE,) else "k:_" if cells[0].way.is_bare else f"C{number}-o",
                capsize=2,
                markersize=4,
            )[0]
    axes.set_title(f"{model}: {way.input}, {way.protocol} ({way.client})", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("callers at once")
    axes.set_ylabel("requests/s")
    return labels
