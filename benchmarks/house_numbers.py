"""Fill Table 2 of the paper: sequence error on house numbers, cell by cell; and what four transformers cost.

    python -m benchmarks.house_numbers 128/multi 128/single 128/cnn      # train cells, then write the table
    python -m benchmarks.house_numbers --seeds 3                         # every cell, three seeds of each
    python -m benchmarks.house_numbers --source svhn --style paper       # photographs, the paper's size: for a GPU
    python -m benchmarks.house_numbers --cost                            # what four transformers cost
    python -m benchmarks.house_numbers --report                          # only write the table

Composed numbers are synthetic: their errors compare networks with each other, not with the paper's on SVHN. Runs are
in runs/house_numbers and go on where they were cut off; results go to benchmarks/results/house_numbers.json and .md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Annotated, Literal

import torch
import typer

from benchmarks.cells import results as results_of
from benchmarks.cells import run_cell
from benchmarks.house_number_cost import Cost, measure_costs
from training.cli import pick_device
from training.config import Recipe, load_recipe
from training.train import CHECKPOINT

RUNS = Path("runs/house_numbers")
RESULTS = Path(__file__).parent / "results"
TEST_BATCH = 250
TEST_IMAGES = 10_000
"""Composed ones that a cell is measured on, after the last epoch."""

CROPS = {64: "tight", 128: "loose"}
EPOCHS = {64: 20, 128: 10}
"""Of all styles but the paper's."""
LOOSENING = 0.6
"""The part of these epochs in which composed loose crops become as loose as those that are measured."""
LOOSE_MULTIPLIERS = {"single": 1.0, "multi": 0.1}
"""Of the learning rate of our localisation networks, which have more to find than in tight crops. The fully connected
ones of Multi, with up to 50,000 inputs a unit, are thrown about by steps that convolutions need."""
MODELS = {"cnn": "none", "single": "single", "multi": "multi"}
PAPER = {"cnn": (4.0, 5.6), "single": (3.7, 3.9), "multi": (3.6, 3.9)}
"""Sequence error in percent on SVHN with 64 and with 128 pixels (Table 2)."""
BY_WORTH = [(size, model) for size in (128, 64) for model in ("multi", "cnn", "single")]

Style = Literal["ours", "modern", "paper"]
"""The paper's networks, narrow, on a short schedule; the one that ships, on the same; the paper's size and schedule."""
Source = Literal["composed", "svhn"]


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One network of the table, and one seed."""

    source: str
    style: str
    size: int
    model: str
    epochs: int
    seed: int

    @property
    def directory(self) -> Path:
        """Where it is trained."""
        return RUNS / f"{self.size}-{self.model}-{self.style}-{self.source}-{self.epochs}-{self.seed}"

    @property
    def begins_with(self) -> Cell | None:
        """Our narrow networks at 128 pixels begin with the convolutions of the CNN that has learned at 64.

        Digits are as large there: what remains to be learned is where they stand.
        """
        if self.style != "ours" or self.size == 64:
            return None
        return replace(self, size=64, model="cnn", epochs=EPOCHS[64])

    def recipe(self) -> Recipe:
        """The networks of a table differ in their transformers alone, and in how fast these learn."""
        settings = [
            f"seed={self.seed}",
            f"data.source={self.source}",
            f"data.size={self.size}",
            f"data.crop={CROPS[self.size]}",
            f"model.transformers={MODELS[self.model]}",
            f"training.epochs={self.epochs}",
        ]
        if self.style != "paper" and CROPS[self.size] == "loose":
            if self.style == "ours" and self.model in LOOSE_MULTIPLIERS:
                settings.append(f"training.localization_multiplier={LOOSE_MULTIPLIERS[self.model]}")
            if self.source == "composed":
                settings.append(f"data.loosening_epochs={LOOSENING * self.epochs}")
        if self.style == "modern":
            settings += ["model.network=modern", "model.width=1.0"]
        if first := self.begins_with:
            settings.append(f"training.warm_start='{first.directory / CHECKPOINT}'")
        return load_recipe("house_numbers_paper" if self.style == "paper" else "house_numbers_table", settings)


@dataclass(frozen=True, kw_only=True)
class Result(Cell):
    """A trained one."""

    error_percent: float
    test_images: int
    parameters: int
    training_minutes: float
    hardware: str
    date: str

    @property
    def cell(self) -> Cell:
        """What tells it from other results."""
        return Cell(**{each.name: getattr(self, each.name) for each in fields(Cell)})


def train_cell(cell: Cell, device: torch.device) -> None:
    """Train a cell, or go on with it, and measure it; first what it begins with."""
    if first := cell.begins_with:
        train_cell(first, device)
    tested = f"data.test_images={TEST_IMAGES}"
    run_cell(cell.recipe(), tested, cell.directory, device, asdict(cell), TEST_BATCH)


def collect() -> tuple[list[Result], list[Cost]]:
    """Every result so far: those in the results file, and those in the run folders, which replace them."""
    path = RESULTS / "house_numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {"results": [], "costs": []}
    measured = (*known["results"], *results_of(RUNS))
    results = {result.cell: result for result in (Result(**each) for each in measured)}
    return [results[cell] for cell in sorted(results)], [Cost(**cost) for cost in known["costs"]]


def write_report(results: list[Result], costs: list[Cost]) -> None:
    """The results as JSON, and the tables."""
    RESULTS.mkdir(exist_ok=True)
    everything = {"results": list(map(asdict, results)), "costs": list(map(asdict, costs))}
    (RESULTS / "house_numbers.json").write_text(json.dumps(everything, indent=1) + "\n")
    (RESULTS / "house_numbers.md").write_text(markdown(results, costs))


def markdown(results: list[Result], costs: list[Cost]) -> str:
    """Table 2 with the paper's numbers beside ours, and the costs."""
    lines = [
        "# House numbers: the paper's Table 2, and ours",
        "",
        "Sequence error in percent: images with any digit, or the length, wrong. The paper's column is on SVHN, real",
        "photographs; *composed* are synthetic images (fonts and MNIST handwriting on painted walls): their errors",
        "compare networks with each other, not with the paper's. 64 px are tight crops, 128 px loose ones. Within a",
        "column all networks have the same width, images and steps, and differ in their transformers alone; mean ±",
        f"standard deviation over seeds, measured after the last epoch on {TEST_IMAGES:,} unseen images. A dash is not",
        "trained yet. *Ours* are the paper's networks, narrow and with batch normalisation, for a CPU core; at 128 px",
        "all begin with the convolutions of the CNN at 64 px, and with tight crops, which become loose in the first",
        "60 % of the epochs: a transformer follows a number that leaves the middle. Shown loose crops from the",
        "beginning it hardly moved (25.8, 25.9 and 26.2 % for CNN, Single and Multi, one seed). There the localisation",
        "of Single learns as fast as the rest, and that of Multi at a tenth, as the paper's: at the full rate it was",
        "far behind after three epochs. *Modern* is the network of the shipped model. Made by",
        "`python -m benchmarks.house_numbers`.",
        "",
        "The shipped model is the modern ST-CNN Multi after 400,000 images: `stn evaluate` on 10,000 unseen ones found",
        "97.4 % of the numbers entirely right, and 99.8 % of the nine tenths that it is sure of.",
        "",
        "Nobody told ST-CNN Multi where the numbers are. At 128 px its four transformers look at these frames, and the",
        "last sees what is below (`transforms.png` of that cell, cut):",
        "",
        "![Loose crops, the frames of four transformers, and each number straight and centred](house_numbers.png)",
    ]
    for index, size in enumerate(CROPS):
        columns = sorted({(r.source, r.style, r.epochs) for r in results if r.size == size})
        titles = [f"{source}, {style}, {epochs} epochs" for source, style, epochs in columns]
        lines += ["", f"| {size} px | " + " | ".join(["paper, SVHN", *titles]) + " |", "|---" * (len(titles) + 2) + "|"]
        for model in MODELS:
            cells = [_summary([r for r in results if _is_of(r, size, model, column)]) for column in columns]
            lines.append(f"| {model} | " + " | ".join([str(PAPER[model][index]), *cells]) + " |")
    lines += ["", "| cell | parameters | seed | error, % | minutes | hardware | date |", "|---" * 7 + "|"]
    lines += [
        f"| {r.size}/{r.model} {r.style} {r.source} | {r.parameters:,} | {r.seed} | {r.error_percent} | "
        f"{r.training_minutes} | {r.hardware} | {r.date} |"
        for r in results
    ]
    if costs:
        lines += ["", "## What four transformers cost", ""]
        lines += ["ST-CNN Multi against the CNN alone, both at the paper's full size, medians of rounds in turn in one"]
        lines += ["run, milliseconds a batch. The paper: 6 % more, forward and backward.", ""]
        lines += ["| what | px | batch | CNN | Multi | Multi / CNN | rounds | hardware | date |", "|---" * 9 + "|"]
        lines += [
            f"| {c.what} | {c.size} | {c.batch} | {c.cnn_ms:.0f} | {c.multi_ms:.0f} | "
            f"**{c.multi_ms / c.cnn_ms:.3f}** | {c.rounds} | {c.hardware} | {c.date} |"
            for c in costs
        ]
    return "\n".join(lines) + "\n"


def _is_of(result: Result, size: int, model: str, column: tuple[str, str, int]) -> bool:
    return (result.size, result.model, (result.source, result.style, result.epochs)) == (size, model, column)


def _summary(results: list[Result]) -> str:
    if not results:
        return "-"
    errors = [r.error_percent for r in results]
    spread = f" ± {pstdev(errors):.2f} ({len(errors)} seeds)" if len(errors) > 1 else " (1 seed)"
    return f"**{mean(errors):.2f}**{spread}"


def main(
    cells: Annotated[list[str] | None, typer.Argument(help="Cells such as 128/multi; all of them, by worth.")] = None,
    style: Annotated[Style, typer.Option(help="Narrow networks, the shipped one, or the paper's.")] = "ours",
    source: Annotated[Source, typer.Option(help="Synthetic images, or SVHN's photographs.")] = "composed",
    seeds: Annotated[int, typer.Option(help="How many seeds of each cell.")] = 1,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    epochs: Annotated[int | None, typer.Option(help="Instead of the style's.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of torch and of ONNX Runtime.")] = None,
    device: Annotated[str, typer.Option(help="auto takes CUDA if there is one.")] = "auto",
    cost: Annotated[bool, typer.Option("--cost", help="Train nothing, measure what transformers cost.")] = False,
    rounds: Annotated[int, typer.Option(help="Of --cost.")] = 15,
    report: Annotated[bool, typer.Option("--report", help="Train nothing, only write the table.")] = False,
) -> None:
    """Train cells of Table 2, or measure costs, and write the tables."""
    if threads:
        torch.set_num_threads(threads)
    where = pick_device(device)
    if cost:
        write_report(collect()[0], measure_costs(where, rounds))
    chosen = [(int(size), model) for size, model in (cell.split("/") for cell in cells)] if cells else BY_WORTH
    schedule = EPOCHS if style != "paper" else dict.fromkeys(CROPS, load_recipe("house_numbers_paper").training.epochs)
    for seed in [] if report or cost else range(first_seed, first_seed + seeds):
        for size, model in chosen:
            length = epochs or schedule[size]
            cell = Cell(source=source, style=style, size=size, model=model, epochs=length, seed=seed)
            train_cell(cell, where)
            write_report(*collect())
    write_report(*collect())
    print((RESULTS / "house_numbers.md").read_text())


if __name__ == "__main__":
    typer.run(main)
