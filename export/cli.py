"""The command `stn export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from export.onnx_export import export_onnx
from export.parity import TOLERANCES, ParityError, ParityReport, ParityRow, measure_parity
from export.parity_cases import Images
from export.parity_picture import draw_worst
from export.provenance import provenance
from export.repository import DEFAULT_MAX_BATCH_SIZE, MODEL_FILE, draft
from training.checkpoint import Checkpoint, load_checkpoint
from training.train import load_data


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version in a model repository."""

    path: Path
    """Its directory."""
    version: int
    parity: ParityReport


def export(
    checkpoint: Annotated[Path, typer.Argument(help="What `stn train` wrote.")],
    repository: Annotated[Path, typer.Option(help="The model repository; made where it is missing.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    version: Annotated[int | None, typer.Option(help="A free version number; by default the next one.")] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=f"Rows of the largest batch; by default {DEFAULT_MAX_BATCH_SIZE}, or what it was."),
    ] = None,
) -> None:
    """Export a checkpoint to ONNX, prove that it computes what PyTorch does, and publish it in a model repository.

    Nothing is published that fails the proof, and no version is ever overwritten. `stn serve` and NVIDIA Triton read
    the same repository.

    Examples:
        stn export runs/digits_rts/checkpoint.pt --repository model_repository --name digits
    """
    console = Console(soft_wrap=True)
    export_checkpoint(checkpoint, repository, name, version, max_batch_size=max_batch_size, console=console)
    console.print(f"Serve it:  stn serve --model-repository {repository}")
    console.print(f"Ask it:    stn predict IMAGE --model {name}")


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    name: str,
    version: int | None = None,
    *,
    max_batch_size: int | None = None,
    console: Console | None = None,
) -> Published:
    """Export a checkpoint, prove the export equal, and publish it: whole, or not at all.

    Args:
        checkpoint: what training wrote.
        repository: the model repository; made where it is missing.
        name: the model's name.
        version: a free version number; by default the next one.
        max_batch_size: by default that of the published model, or 64.
        console: told what happens; None is silent.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: the data set with the real images for the proof cannot be had.
        ExportError: the network cannot be exported.
        GraphError: the exported graph is not what it must be.
        ParityError: it does not compute what PyTorch computes.
        PublishError: name or version are taken or cannot be.
        ConfigurationError: the model published under this name is broken.
    """
    console = console or Console(quiet=True)
    trained = load_checkpoint(checkpoint)
    network = trained.build_network()
    with draft(repository, name, version) as entry:
        model = entry.version_directory / MODEL_FILE
        console.print(f"Exporting {checkpoint} (recipe '{trained.recipe.name}', epoch {trained.epoch}) to ONNX.")
        contract = export_onnx(network, trained.labels, model)
        config = entry.configure(contract, max_batch_size)
        console.print(f"Comparing with PyTorch at batches of up to {config.max_batch_size}.")
        images = _test_images(trained, config.max_batch_size)
        parity = measure_parity(network, entry.directory, entry.version, config, images)
        console.print(parity_table(parity))
        if parity.failures:
            raise ParityError(parity)
        (entry.version_directory / "parity.json").write_text(parity.to_json())
        picture = draw_worst(network, entry.directory, entry.version, config, images)
        if picture:
            picture.save(entry.version_directory / "parity.png")
        (entry.version_directory / "provenance.json").write_text(provenance(trained, model))
        path = entry.publish()
    console.print(f"Published [bold]{path}[/].")
    return Published(path=path, version=entry.version, parity=parity)


def _test_images(checkpoint: Checkpoint, count: int) -> Images:
    data = load_data(checkpoint.recipe, torch.device("cpu"))
    images, _ = next(data.test_batches(count))
    return np.asarray((images * 255).round().byte().permute(0, 2, 3, 1).contiguous())


def parity_table(report: ParityReport) -> Table:
    """For people: each check and output at its worst batch size."""
    tolerance = TOLERANCES[report.precision]
    title = f"Parity with PyTorch, {report.precision}: {tolerance.error:g} of the largest number allowed"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for title in ("check", "output", "max", "mean", "relative", "class", "quad px", ""):
        table.add_column(title, justify="left" if title in ("check", "output") else "right", no_wrap=True)
    for row in report.worst():
        table.add_row(*_cells(row))
    return table


def _cells(row: ParityRow) -> list[str]:
    return [
        row.check,
        row.output,
        f"{row.max_absolute:.1g}",
        f"{row.mean_absolute:.1g}",
        f"{row.max_relative:.1g}",
        "" if row.top_class_agreement is None else f"{row.top_class_agreement:.0%}",
        "" if row.displacement_px is None else f"{row.displacement_px:.1g}",
        "[red]failed[/]" if row.failure else "[green]ok[/]",
    ]
