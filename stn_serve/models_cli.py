"""The commands `stn models`: what a repository holds, whether it can be served, and taking a model out of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stn_serve.errors import ConfigurationError
from stn_serve.model import Model
from stn_serve.repository import read_config, served_versions
from stn_serve.repository_check import check_repository, directories
from stn_serve.signature import TensorSignature

Repository = Annotated[Path, typer.Option("--model-repository", help="The model repository.")]
DEFAULT_REPOSITORY = Path("model_repository")

models = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after the models of a repository.")


@models.command("list")
def list_models(model_repository: Repository = DEFAULT_REPOSITORY) -> None:
    """List the models of a repository: versions, input, classes, and what transforms them.

    Of one that is broken `stn models check` says why.
    """
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("model", "versions", "image", "classes", "transform", "max batch"):
        table.add_column(title)
    for directory in directories(model_repository):
        table.add_row(*_listed(directory))
    Console().print(table)


@models.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Of the model.")], model_repository: Repository = DEFAULT_REPOSITORY
) -> None:
    """Show one model: its tensors and transformers, how far it is from PyTorch, and where it comes from."""
    directory = directories(model_repository, name)[0]
    config = read_config(directory)
    console = Console(soft_wrap=True)
    for version in served_versions(directory, config):
        model = Model.load(directory, version, config)
        console.print(f"[bold]{escape(name)}[/] version {version}, batches of up to {model.max_batch_size}")
        for role, signatures in (("input", model.inputs), ("output", model.outputs)):
            for signature in signatures:
                console.print(f"  {role:9} {escape(_signature(signature))}")
        for line in [*_described(model), *_proven(directory / str(version)), *_made(directory / str(version))]:
            console.print(f"  {escape(line)}")


@models.command("check")
def check(
    name: Annotated[str | None, typer.Argument(help="Of one model; all by default.")] = None,
    model_repository: Repository = DEFAULT_REPOSITORY,
) -> None:
    """Check a repository as Triton and `stn serve` would, and further: models against configuration, labels, warm-up.

    Explains each finding. Exit code 1 when something keeps a model from being served rightly.
    """
    findings = check_repository(model_repository, name)
    console = Console(soft_wrap=True)
    for finding in findings:
        color = "red" if finding.severity == "error" else "yellow"
        where = finding.model + (f"/{finding.version}" if finding.version else "")
        console.print(f"[{color}]{finding.severity}[/] [bold]{escape(where)}[/]: {escape(finding.problem)}")
        console.print(f"      {escape(finding.remedy)}")
    errors = sum(finding.severity == "error" for finding in findings)
    count = len(directories(model_repository, name))
    console.print(f"{count} models, {errors} errors, {len(findings) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@models.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Of the model.")],
    version: Annotated[int | None, typer.Option(help="Only this version; the whole model by default.")] = None,
    model_repository: Repository = DEFAULT_REPOSITORY,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take a model, or one of its versions, out of a repository: in one step, so that no server sees a part of it."""
    directory = directories(model_repository, name)[0]
    target = directory if version is None else directory / str(version)
    if not target.is_dir():
        raise ConfigurationError(f"model '{name}' has no version {version}")
    others = [path for path in directory.iterdir() if path.name.isdecimal() and path != target]
    if version is not None and not others:
        raise ConfigurationError(f"version {version} is the only one of '{name}': remove the whole model")
    if not yes:
        typer.confirm(f"Remove {target} for good?", abort=True)
    with tempfile.TemporaryDirectory(prefix=".removed-", dir=model_repository) as aside:
        shutil.move(target, Path(aside) / target.name)
    Console(soft_wrap=True).print(f"Removed {escape(str(target))}.")


def _listed(directory: Path) -> list[str]:
    try:
        config = read_config(directory)
        versions = served_versions(directory, config)
        model = Model.load(directory, versions[-1], config)
    except ConfigurationError:
        return [directory.name, "[red]broken[/]"]
    metadata = model.metadata
    image = f"{metadata.input.height}x{metadata.input.width} {metadata.input.color}" if metadata else ""
    transform = f"{metadata.transform or 'none'}" + _times(len(metadata.transformers)) if metadata else ""
    numbers = ", ".join(map(str, versions))
    return [directory.name, numbers, image, str(len(model.labels) or ""), transform, str(model.max_batch_size)]


def _times(count: int) -> str:
    return f" x {count}" if count > 1 else ""


def _signature(signature: TensorSignature) -> str:
    return f"{signature.name} {signature.datatype} {list(signature.shape)}"


def _described(model: Model) -> list[str]:
    if not model.metadata:
        return []
    labels = ", ".join(model.labels[:10]) + (", ..." if len(model.labels) > 10 else "")
    lines = [f"{'classes':9} {len(model.labels)}: {labels}"]
    for transformer in model.metadata.transformers:
        height, width = transformer.output_size
        lines.append(
            f"{'looks':9} {transformer.name}: {model.metadata.transform} of {transformer.place}, {height}x{width}"
        )
    return lines


def _proven(directory: Path) -> list[str]:
    parity = _document(directory / "parity.json")
    if not parity:
        return [f"{'parity':9} not known: there is no parity.json"]
    worst = max((row["max_relative"] for row in parity["rows"]), default=0.0)
    count = len({row["check"] for row in parity["rows"]})
    return [f"{'parity':9} {parity['precision']}, {count} checks, off by {worst:.1g} of an output's largest at most"]


def _made(directory: Path) -> list[str]:
    origin = _document(directory / "provenance.json")
    exported = origin.get("export", {})
    measured = exported.get("measurement") or {}
    lines = [f"{'made':9} {origin['created']}"] if "created" in origin else []
    if measured:
        share = f"{measured['accuracy_percent']:.2f} % of {measured['images']} validation images right"
        speeds = ", ".join(f"{speed['ms']:.3g} ms at batch {speed['batch']}" for speed in measured["speed"])
        lines.append(f"{'measured':9} {share}; {speeds}")
    return lines


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
