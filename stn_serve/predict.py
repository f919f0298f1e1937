"""`stn predict`: ask a running server about image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stn_serve.addresses import ConnectionOptions
from stn_serve.client import DEFAULT_ADDRESS, Client
from stn_serve.drawing import captioned, contact_sheet
from stn_serve.errors import InvalidRequest, ServingError
from stn_serve.prediction import Prediction, Transform

Answer = tuple[Path, Prediction | ServingError]


def predict(
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG, WebP or BMP files.", metavar="IMAGE")],
    url: Annotated[str, typer.Option(help="host:port for gRPC, http://host:port for HTTP.")] = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="May be left out where the server has just one.")] = "",
    version: Annotated[str, typer.Option(help="The newest by default.")] = "",
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 1,
    draw: Annotated[Path | None, typer.Option(help="Write a picture of the answers to this file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per image instead of a table.")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="How long to wait for an answer, in seconds.")] = 60.0,
    ca: Annotated[Path | None, typer.Option(help="PEM file of whom to trust; the system's by default.")] = None,
    cert: Annotated[Path | None, typer.Option(help="PEM file of your own certificate, with --key.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="STN_TOKEN", help="Where the server wants one; others see what is typed here.")
    ] = None,
) -> None:
    """Ask a running server what is on the images, and where its transformers looked.

    For example:

        stn predict digit.png

        stn predict *.jpg --url http://localhost:8000 --model birds --top-k 3

        stn predict digit.png --draw answer.png

        stn predict *.png --json | jq .label

        STN_TOKEN=$(cat token) stn predict digit.png --url grpcs://stn.example.com:443
    """
    options = {"ca": ca, "cert": cert, "key": key, "token": token}
    given = cast("ConnectionOptions", {name: value for name, value in options.items() if value})
    with Client(url, timeout_s=timeout_s, **given) as client:
        outcomes = client.predict_many(images, model=model, version=version, top_k=top_k)
    answers = list(zip(images, outcomes, strict=True))
    if as_json:
        typer.echo(
            b"\n".join(orjson.dumps(_document(*answer), option=orjson.OPT_SERIALIZE_NUMPY) for answer in answers)
        )
    else:
        Console(markup=False).print(table(answers))  # files and labels may hold brackets
    if draw:
        _draw(draw, answers)
    _report_errors(answers)


def _document(path: Path, outcome: Prediction | ServingError) -> dict[str, object]:
    if isinstance(outcome, ServingError):
        return {"image": str(path), "error": str(outcome)}
    summary = {"image": str(path), "label": outcome.label, "probability": outcome.probability}
    return summary | asdict(outcome)


def table(answers: Sequence[Answer]) -> Table:
    """Fits a terminal of 80 columns: long names go on in the next line, names of transformers stand where needed."""
    predictions = [outcome for _, outcome in answers if isinstance(outcome, Prediction)]
    several = any(len(prediction.transforms) > 1 for prediction in predictions)
    lines = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("image", "label"):
        lines.add_column(heading, overflow="fold")
    for heading in ("prob.", *["by"] * several, "turned", "scale", "around x, y", "outside"):
        lines.add_column(heading, no_wrap=True)
    for path, outcome in answers:
        if isinstance(outcome, ServingError):
            lines.add_row(path.name, Text("error", "red"))
        else:
            for row in _rows(path.name, outcome, several):
                lines.add_row(*row)
    return lines


def _rows(name: str, prediction: Prediction, several: bool) -> Iterator[tuple[str, ...]]:
    """A line for each class and transformer, side by side."""
    probabilities = [f"{probability:.1%}" for probability in prediction.probabilities]
    classes = list(zip(prediction.labels, probabilities, strict=True))
    looks = [((transform.name,) * several) + _look(transform) for transform in prediction.transforms]
    for number in range(max(len(classes), len(looks))):
        yield (
            name if number == 0 else "",
            *(classes[number] if number < len(classes) else ("", "")),
            *(looks[number] if number < len(looks) else ()),
        )


def _look(transform: Transform) -> tuple[str, str, str, str]:
    if not transform.quad.size:
        return "-", "-", "nowhere", "-"
    x, y = transform.quad.mean(axis=0)
    pose = transform.pose
    return (
        f"{round(pose.rotation_degrees, 1) + 0.0:+.1f}°",
        " ".join(f"{scale:.2f}" for scale in pose.scale),
        f"{x:.0f}, {y:.0f}",
        f"{1 - pose.inside_ratio:.0%}",
    )


def _draw(target: Path, answers: Sequence[Answer]) -> None:
    pictures = [
        captioned(outcome.draw(path), path.name) for path, outcome in answers if isinstance(outcome, Prediction)
    ]
    if pictures:
        contact_sheet(pictures).save(target)


def _report_errors(answers: Sequence[Answer]) -> None:
    failed = [f"{path}: {outcome}" for path, outcome in answers if isinstance(outcome, ServingError)]
    if failed:
        raise InvalidRequest("; ".join(failed))
