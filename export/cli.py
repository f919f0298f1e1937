"""The command `stn export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from export.description import ExportError
from export.foreign import from_factory
from export.parity import Precision
from export.publishing import publish
from export.repository import DEFAULT_MAX_BATCH_SIZE
from export.source import from_checkpoint
from export.targets import Target


def export(
    checkpoint: Annotated[Path, typer.Argument(help="What `stn train` wrote; with --model, weights for it.")],
    repository: Annotated[Path, typer.Option(help="The model repository; made where it is missing.")],
    name: Annotated[str, typer.Option(help="The model's name in the repository.")],
    version: Annotated[int | None, typer.Option(help="A free version number; by default the next one.")] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Rows of the largest batch; by default what it was, or {DEFAULT_MAX_BATCH_SIZE}, less if large.",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 (for GPUs), fp16-weights (half the file anywhere) or int8 (for CPUs).")
    ] = "fp32",
    target: Annotated[
        str | None,
        typer.Option(help="What runs it: cpu, cuda or tensorrt; by default what the published model runs on, or cpu."),
    ] = None,
    triton: Annotated[
        str | None, typer.Option(help="The oldest release of Triton that must serve it, such as 26.07.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="package.module:function that builds a network of yours. Its code is run.")
    ] = None,
    example: Annotated[
        list[Path] | None, typer.Option(help="With --model: an image of the size it takes; may be repeated.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="With --model: the name of one class a line.")] = None,
) -> None:
    """Export a checkpoint to ONNX, prove that it computes what PyTorch does, and publish it in a model repository.

    Nothing is published that fails the proof, that its target would compute wrongly, or whose precision costs more
    accuracy than it may; and no version is ever overwritten. `stn serve` and NVIDIA Triton read the same repository.

    Examples:
        stn export runs/digits_rts/checkpoint.pt --repository model_repository --name digits

        stn export runs/digits_rts/checkpoint.pt --repository model_repository --name digits_int8 --precision int8

        stn export runs/digits_rts/checkpoint.pt --repository gpu --name digits --target cuda --triton 26.07

        stn export weights.pt --model mine.networks:build --example dog.png --repository model_repository --name mine
    """
    console = Console(soft_wrap=True)
    if not model and (example or labels):
        raise ExportError("example, labels: only with --model; a checkpoint of `stn train` brings its own")
    if precision not in get_args(Precision):
        raise ExportError(f"precision: expected one of {', '.join(get_args(Precision))}, got '{precision}'")
    publish(
        from_factory(model, checkpoint, example or [], labels) if model else from_checkpoint(checkpoint),
        repository,
        name,
        version,
        max_batch_size=max_batch_size,
        precision=precision,  # type: ignore[arg-type]  # looked up above
        target=Target.parse(target or "cpu", triton) if target or triton else None,
        console=console,
    )
    console.print(f"Serve it:  stn serve --model-repository {repository}")
    console.print(f"Ask it:    stn predict IMAGE --model {name}")
