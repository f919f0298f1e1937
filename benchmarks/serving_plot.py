"""The results of `benchmarks.serving` as a picture: throughput against the callers at once."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import BARE, Way
from benchmarks.serving_results import Results

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def plot(results: Results, path: Path) -> None:
    """A row for each model, a column for each way to ask; the lines are medians, the bars least and most."""
    cells = [cell for cell in results.rounds if cell.way != BARE]
    models = list(dict.fromkeys(cell.model for cell in cells))
    ways = sorted({cell.way for cell in cells}, key=lambda way: (way.input != "tensor", way.client, way.protocol))
    if not cells:
        return
    figure, grid = plt.subplots(len(models), len(ways), figsize=(4 * len(ways), 3.2 * len(models)), squeeze=False)
    for row, model in zip(grid, models, strict=True):
        for axes, way in zip(row, ways, strict=True):
            _draw(axes, results, model, way)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(len(handles), 5))
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _draw(axes: Axes, results: Results, model: str, way: Way) -> None:
    for number, peer in enumerate(PEERS.values()):
        asked = BARE if BARE in peer.ways else way
        cells = sorted(
            cell for cell in results.rounds if (cell.model, cell.way, cell.server) == (model, asked, peer.name)
        )
        figures = [(cell.concurrency, figure) for cell in cells if (figure := results.figure(cell, "throughput"))]
        if figures:
            medians = [figure.median for _, figure in figures]
            spread = [
                [figure.median - figure.least for _, figure in figures],
                [figure.most - figure.median for _, figure in figures],
            ]
            style = "k--" if asked == BARE else f"C{number}-o"
            axes.errorbar(
                [c for c, _ in figures], medians, spread, fmt=style, capsize=2, markersize=3, label=peer.title
            )
    axes.set_title(f"{model}: {way.input}, {way.protocol} ({way.client})", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("callers at once")
    axes.set_ylabel("requests/s")
