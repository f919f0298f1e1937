"""Table 3 of the paper on the birds that are here: a plain network beside 2xST-CNN and 4xST-CNN, and what they found.

    python -m benchmarks.birds --help
    python -m benchmarks.birds 2x/0 cnn_on/0       # train two cells (first the plain network they begin with)
    python -m benchmarks.birds --report            # only measure and write down what has been trained
    python -m benchmarks.birds --cost              # also what the ways to look at 448 px cost

Cells are MODEL/SEED. `cnn` is the recipe `birds_cnn`; all others begin with it, of the same seed, and train on for the
same number of epochs: `cnn_on` without transformers, `2x` and `4x` with them, `2x_224` on photos of 224 px,
`2x_attention` with crops that choose their size. None is chosen by its test error. Runs go on in runs/birds where they
were cut off; results go to benchmarks/results/birds.json and birds.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.birds_cost import COST, measure_costs, write_costs
from benchmarks.cells import hardware
from training.checkpoint import Checkpoint, load_checkpoint
from training.cli import pick_device
from training.config import Recipe, load_recipe
from training.data.photos import Photos
from training.found import Found, find_parts
from training.models.digits import count_parameters
from training.models.network import Network
from training.train import load_data, read_log, train

RUNS = Path("runs/birds")
RESULTS = Path(__file__).parent / "results"
MODELS = {
    "cnn": "plain network",
    "cnn_on": "plain network, trained on",
    "2x_224": "2xST-CNN, 224 px",
    "2x": "2xST-CNN, 448 px",
    "2x_attention": "2xST-CNN, 448 px, attention",
    "4x": "4xST-CNN, 448 px",
}
VARIANTS = {"2x_224": "data.size=224", "2x_attention": "model.transform=attention"}
"""Of the recipe of `2x`."""
PAPER = {"cnn": "82.3", "cnn_on": "", "2x_224": "83.1", "2x": "83.9", "2x_attention": "", "4x": "84.1"}
"""Accuracy in percent: Inception at 224 px, 200 species."""
INTRODUCTION = """# Birds: the paper's Table 3, and ours

Accuracy in percent on the official split of what there was of CUB-200-2011: classes 1 to 50, 1,500 photos to train and
1,006 to test, whose shorter side has 320 px at most. All networks have one backbone, MobileNet V1 0.75 trained on
ImageNet, and give it 160 x 160 px, half the pixels of the paper's 224: what two cores can train. The plain network sees
the whole photo, reduced; each transformer cuts half of its side out of 448 px (or 224); with attention it chooses how
much, half at the start. The plain network trains 12 epochs; the others begin with it, seed by seed, and train 4 epochs
more, `trained on` without transformers. Measured after the last
epoch, nothing chosen by its test error; ± is the standard deviation over seeds. The paper's numbers are of all 200
classes, with Inception at 224 px. Photos to train on are reduced once to be kept and once to be shown, photos to test
once, as a server does it: of 448 px nothing is lost, of 160 px a little. Tested on photos that were reduced twice too,
the plain networks `cnn/0` and `cnn/1` are right on 68.7 and 68.6 %, trained on 66.1 and 66.5 %. Made by
`python -m benchmarks.birds --report`.
"""
FOUND = """## What the transformers found

Percent of the test photos in which a crop holds every visible point of a part (head: beak, crown, forehead, eyes and
throat; body: back, belly and breast), of those photos in which all of these points lie in what the network sees. No
network was shown any part. Means over seeds.
"""
SEEDS = (0, 1, 2)
BY_WORTH = [
    *((model, seed) for seed in SEEDS for model in ("cnn", "2x", "cnn_on")),
    *((model, seed) for seed in SEEDS for model in ("4x", "2x_224", "2x_attention")),
]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained cell."""

    model: str
    seed: int
    epochs: int
    accuracy_percent: float
    top5_percent: float
    test_images: int
    parameters: int
    training_minutes: float
    found: dict[str, Found]
    """By the group of parts; empty without transformers."""
    hardware: str
    date: str
    training_loss: float | None = None
    """Of the last epoch: with augmentation, dropout and smoothed labels."""
    test_loss: float | None = None


def recipe(model: str, seed: int) -> Recipe:
    """The recipe of a cell."""
    begun = f"training.warm_start='{RUNS / f'cnn-{seed}' / 'checkpoint.pt'}'"
    if model == "cnn":
        return load_recipe("birds_cnn", [f"seed={seed}"])
    if model == "cnn_on":
        like = load_recipe("birds_2x").training
        schedule = [f"training.{name}={getattr(like, name)}" for name in ("epochs", "learning_rate", "evaluations")]
        return load_recipe("birds_cnn", [f"seed={seed}", begun, *schedule])
    variant = [VARIANTS[model]] if model in VARIANTS else []
    return load_recipe("birds_2x" if variant else f"birds_{model}", [f"seed={seed}", begun, *variant])


def run_cell(model: str, seed: int, device: torch.device) -> None:
    """Train a cell, or go on with it; first the plain network that it begins with."""
    if model != "cnn":
        run_cell("cnn", seed, device)
    if not _is_finished(RUNS / f"{model}-{seed}"):
        print(f"training {model}-{seed}", flush=True)
        train(recipe(model, seed), RUNS / f"{model}-{seed}", device)


def _is_finished(directory: Path) -> bool:
    path = directory / "checkpoint.pt"
    return path.exists() and load_checkpoint(path).finished


def measure(directory: Path, device: torch.device) -> Result:
    """Measure a finished cell; kept beside it."""
    kept = directory / "result.json"
    if kept.exists():
        return result_from(json.loads(kept.read_text()))
    checkpoint = load_checkpoint(directory / "checkpoint.pt")
    network = checkpoint.build_network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = load_data(checkpoint.recipe, device)
    assert isinstance(data, Photos)  # noqa: S101 - the recipes of this program name birds
    logits, theta, targets = _ask(network, data)
    model, _, seed = directory.name.rpartition("-")
    log = list(read_log(directory))
    result = Result(
        model=model,
        seed=int(seed),
        epochs=_epochs(checkpoint, directory),
        accuracy_percent=round(100 * (logits.argmax(1) == targets).float().mean().item(), 2),
        top5_percent=round(100 * (logits.topk(5).indices == targets[:, None]).any(1).float().mean().item(), 2),
        test_images=len(targets),
        parameters=count_parameters(network),
        training_minutes=round(sum(entry["seconds"] for entry in log) / 60, 1),
        found={} if theta is None else find_parts(theta, data),
        hardware=hardware(device),
        date=datetime.now(UTC).date().isoformat(),
        training_loss=round(log[-1]["loss"], 3),
        test_loss=round(log[-1]["test_loss"], 3),
    )
    kept.write_text(json.dumps(asdict(result)))
    return result


@torch.no_grad()
def _ask(network: Network, birds: Photos) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits, theta and the true classes of all test photos, in one pass."""
    logits, theta, targets = [], [], []
    for images, classes in birds.test_batches():
        answer = network(images.contiguous(memory_format=torch.channels_last))
        logits.append(answer.logits)
        targets.append(classes)
        if answer.theta is not None:
            theta.append(answer.theta)
    return torch.cat(logits), torch.cat(theta) if theta else None, torch.cat(targets)


def _epochs(checkpoint: Checkpoint, directory: Path) -> int:
    """Its own, and those of the plain network it began with."""
    start = checkpoint.recipe.training.warm_start
    before = load_checkpoint(directory.parent / Path(start).parent.name / "checkpoint.pt").epoch if start else 0
    return checkpoint.epoch + before


def result_from(fields: dict[str, object]) -> Result:
    """From JSON."""
    found = {group: Found(**{**values, "each": tuple(values["each"])}) for group, values in fields["found"].items()}  # type: ignore[attr-defined]
    return Result(**{**fields, "found": found})  # type: ignore[arg-type]


def collect(device: torch.device) -> list[Result]:
    """Every result so far: those in the results file, and those of finished runs, which replace them."""
    path = RESULTS / "birds.json"
    known = [result_from(fields) for fields in json.loads(path.read_text())] if path.exists() else []
    found = [measure(run, device) for run in sorted(RUNS.glob("*-?")) if _is_finished(run)]
    results = {(result.model, result.seed): result for result in (*known, *found)}
    return sorted(results.values(), key=lambda result: (list(MODELS).index(result.model), result.seed))


def markdown(results: list[Result]) -> str:
    """Table 3 with the paper's number beside ours, and what was found."""
    lines = [INTRODUCTION, "| | paper | ours | top 5 | seeds | parameters | epochs | minutes each |", "|---" * 8 + "|"]
    for model, name in MODELS.items():
        of_model = [result for result in results if result.model == model]
        if of_model:
            lines.append(_row(name, PAPER[model], of_model))
    lines += ["", *_found_lines(results), "", *_cell_lines(results)]
    return "\n".join(lines) + "\n"


def _row(name: str, paper: str, results: list[Result]) -> str:
    accuracy = _spread([result.accuracy_percent for result in results])
    top5 = _spread([result.top5_percent for result in results])
    minutes = mean(result.training_minutes for result in results)
    first = results[0]
    return (
        f"| {name} | {paper} | **{accuracy}** | {top5} | {len(results)} | {first.parameters:,} | {first.epochs} | "
        f"{minutes:.0f} |"
    )


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _found_lines(results: list[Result]) -> list[str]:
    lines = [FOUND, "| | part | each crop | any crop | any of as many at random | one in the centre | photos |"]
    lines.append("|---" * 7 + "|")
    for model, name in MODELS.items():
        found = [result.found for result in results if result.model == model and result.found]
        for group in found[0] if found else ():
            of_group = [each[group] for each in found]
            crops = ", ".join(f"{100 * mean(shares):.0f}" for shares in zip(*(f.each for f in of_group), strict=True))
            shares = [100 * mean(getattr(f, kind) for f in of_group) for kind in ("any", "random", "centre")]
            numbers = " | ".join(f"{share:.1f}" for share in shares)
            lines.append(f"| {name} | {group} | {crops} | {numbers} | {of_group[0].images} |")
    return lines


def _cell_lines(results: list[Result]) -> list[str]:
    lines = ["The loss in training is with augmentation, dropout and smoothed labels; early cells have none on record."]
    lines += ["", "| cell | accuracy | top 5 | loss in training | on test photos | minutes | hardware | date |"]
    lines.append("|---" * 8 + "|")
    return lines + [
        f"| {r.model}/{r.seed} | {r.accuracy_percent} | {r.top5_percent} | {r.training_loss or '-'} | "
        f"{r.test_loss or '-'} | {r.training_minutes} | {r.hardware} | {r.date} |"
        for r in results
    ]


def main(
    cells: Annotated[list[str] | None, typer.Argument(help="Cells such as 2x/0; all of them, by worth.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    device: Annotated[str, typer.Option(help="auto takes CUDA if there is one.")] = "auto",
    cost: Annotated[bool, typer.Option("--cost", help="Measure what looking at 448 px costs.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Train nothing, only write the table.")] = False,
) -> None:
    """Train cells of Table 3 and write the table."""
    torch.set_num_threads(threads)
    where = pick_device(device)
    chosen = [(model, int(seed)) for model, seed in (cell.split("/") for cell in cells)] if cells else BY_WORTH
    for model, seed in [] if report else chosen:
        run_cell(model, seed, where)
    if cost:
        write_costs(measure_costs(), RESULTS / COST)
    results = collect(where)
    (RESULTS / "birds.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    costs = (RESULTS / COST).read_text() if (RESULTS / COST).exists() else ""
    (RESULTS / "birds.md").write_text(markdown(results) + costs)
    print((RESULTS / "birds.md").read_text())


if __name__ == "__main__":
    typer.run(main)
