"""The commands `stn train` and `stn evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL.Image import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.checkpoint import Checkpoint, build_network, load_checkpoint
from training.config import Recipe, load_recipe
from training.data.loading import DataSet
from training.data.photos import Photos
from training.distributed import first_before_others, is_first, joined
from training.evaluate import accuracy_by_class
from training.evaluate import evaluate as evaluate_network
from training.found import find_parts, found_table, look
from training.models.digits import count_parameters
from training.models.network import Network
from training.pictures import contact_sheet, draw_curves, stack
from training.readings import Readings, measure_readings
from training.train import CHECKPOINT, LOG, begin, load_data, read_log
from training.train import train as train_recipe

SHEET_IMAGES = 10
CONSOLE = Console(soft_wrap=True)

RecipeArgument = Annotated[
    str, typer.Argument(help="Name of a recipe that comes with stn-serve, or the path of a .toml file.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a field of the recipe, such as training.epochs=3. Can be repeated."),
]
DeviceOption = Annotated[str, typer.Option(help="Where to compute: auto takes CUDA if there is one.")]


def train(
    recipe: RecipeArgument,
    output: Annotated[
        Path | None, typer.Option(help="Where the checkpoint, the log and the pictures go; runs/RECIPE by default.")
    ] = None,
    settings: SettingsOption = None,
    restart: Annotated[bool, typer.Option(help="Begin anew where a run is already in the output folder.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a network from a recipe.

    A run that was cut off goes on where it stopped: give the same command again. The output folder holds checkpoint.pt,
    log.jsonl (one line an epoch), curves.png and transforms.png (what the transformers look at, before and after).

    Examples:
        stn train digits_rts

        stn train digits_rts --set training.epochs=5 --set seed=1 --output runs/short

        stn train my_recipe.toml --device cuda

        torchrun --nproc-per-node 4 -m stn_serve train digits_rts
    """
    chosen = load_recipe(recipe, settings or [])
    directory = output or Path("runs") / chosen.name
    with joined(pick_device(device)) as own_device:
        if restart:
            with first_before_others():
                for name in (CHECKPOINT, LOG):
                    (directory / name).unlink(missing_ok=True)
        checkpoint = run(chosen, directory, own_device, CONSOLE)
        first = is_first()
    if first:
        _report(checkpoint, directory)


def _report(checkpoint: Checkpoint, directory: Path) -> None:
    CONSOLE.print(f"Finished: {_summary(checkpoint.metrics)}")
    CONSOLE.print(f"In {directory}: {', '.join(sorted(path.name for path in directory.iterdir()))}")
    CONSOLE.print(
        f"Next: stn export {directory / CHECKPOINT} --repository model_repository --name {checkpoint.recipe.name}"
    )


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint.pt that `stn train` wrote.")],
    picture: Annotated[
        Path | None, typer.Option(help="Also draw what the transformers look at on test images, as a PNG.")
    ] = None,
    by_class: Annotated[bool, typer.Option(help="Also list how much of each class is right, the worst first.")] = False,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a checkpoint on its test set; on birds also how often the transformers find head and body.

    Examples:
        stn evaluate runs/digits_rts/checkpoint.pt

        stn evaluate runs/digits_rts/checkpoint.pt --set data.test_copies=10 --picture transforms.png
    """
    loaded = load_checkpoint(checkpoint)
    recipe = loaded.recipe.changed(settings or [])
    where = pick_device(device)
    network = loaded.build_network().to(where)
    data = load_data(recipe, where)
    if data.sha256 != loaded.data_sha256:
        CONSOLE.print(f"Note: trained on {loaded.data_source}, measured on {data.source}: not the same data.")
    CONSOLE.print(_summary(evaluate_network(network, data.test_batches())))
    if isinstance(data, Photos) and recipe.data.family == "birds" and network.transformers():
        CONSOLE.print(found_table(find_parts(look(network, data), data, recipe.data.path)))
    if recipe.model.family == "house_numbers":
        CONSOLE.print(_readings_table(measure_readings(network, data.test_batches())))
    if by_class:
        CONSOLE.print(_class_table(accuracy_by_class(network, data.test_batches(), len(data.labels)), data.labels))
    if picture:
        _sheet(network, data).save(picture)
        CONSOLE.print(f"Wrote {picture}")


def run(recipe: Recipe, directory: Path, device: torch.device, console: Console) -> Checkpoint:
    """Train with a progress bar; pictures are drawn at the end. Of several processes only the first shows anything."""
    console = console if is_first() else Console(quiet=True)
    data = load_data(recipe, device)
    torch.manual_seed(recipe.seed)
    untrained = build_network(recipe, data.input_size, len(data.labels)).to(device)
    begin(untrained, recipe.training)
    console.print(
        f"[bold]{recipe.name}[/] on {device}: {data.train_count:,} images an epoch ({data.source}), "
        f"{count_parameters(untrained):,} parameters, {recipe.training.epochs} epochs"
    )
    with _progress(console) as progress:
        task = progress.add_task("training", total=None, loss="")
        checkpoint = train_recipe(
            recipe,
            directory,
            device,
            lambda step, steps, loss: progress.update(task, completed=step, total=steps, loss=f"loss {loss:.3f}"),
        )
    if is_first():
        trained = checkpoint.build_network().to(device)
        sheets = [("Before training", _sheet(untrained, data)), ("After training", _sheet(trained, data))]
        stack(sheets).save(directory / "transforms.png")
        draw_curves(list(read_log(directory)), recipe.name, directory / "curves.png")
    return checkpoint


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _sheet(network: Network, data: DataSet) -> Image:
    images, targets = next(iter(data.test_batches()))
    return contact_sheet(network, images[:SHEET_IMAGES], targets[:SHEET_IMAGES], data.labels)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _summary(metrics: dict[str, float]) -> str:
    top5 = f" (top five: {metrics['top5_error_percent']:.2f} %)" if "top5_error_percent" in metrics else ""
    return f"test error {metrics['error_percent']:.2f} %{top5} on {metrics['images']:,.0f} images"


def _readings_table(readings: Readings) -> Table:
    table = Table("of", "right, %")
    table.add_row("whole sequences", f"{readings.right:.2f}")
    table.add_row("lengths", f"{readings.length_right:.2f}")
    for index, share in enumerate(readings.right_by_position, start=1):
        table.add_row(f"position {index}", f"{share:.2f}")
    for length, share in enumerate(readings.right_by_length, start=1):
        table.add_row(f"sequences of {length}", f"{share:.2f}")
    table.add_row(f"the {readings.sure:.1f} % that it is sure of", f"{readings.right_when_sure:.2f}")
    table.add_row("(mean confidence)", f"{readings.confidence:.2f}")
    return table


def _class_table(percent: Sequence[float], labels: Sequence[str]) -> Table:
    table = Table("class", "right, %")
    for share, label in sorted(zip(percent, labels, strict=True)):
        table.add_row(label, f"{share:.1f}")
    return table
