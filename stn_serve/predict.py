"""`stn predict`: ask a running server about image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

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
) -> None:
    """Ask a running server what is on the images, and where its transformers looked.

    For example:

        stn predict digit.png

        stn predict *.jpg --url http://localhost:8000 --model birds --top-k 3

        stn predict digit.png --draw answer.png

        stn predict *.png --json | jq .label
    """
    with Client(url, timeout_s=timeout_s) as client:
        outcomes = client.predict_many(images, model=model, version=version, top_k=top_k)
    answers = list(zip(images, outcomes, strict=True))
    if as_json:
        typer.echo(
            b"\n".join(orjson.dumps(_document(*answer), option=orjson.OPT_SERIALIZE_NUMPY) for answer in answers)
        )
    else:
        Console().print(_table(answers))
    if draw:
        _draw(draw, answers)
    _report_errors(answers)


def _document(path: Path, outcome: Prediction | ServingError) -> dict[str, object]:
    if isinstance(outcome, ServingError):
        return {"image": str(path), "error": str(outcome)}
    summary = {"image": str(path), "label": outcome.label, "probability": outcome.probability}
    return summary | asdict(outcome)


def _table(answers: Sequence[Answer]) -> Table:
    table = Table("image", "label", "probability", "transformer", "rotation", "scale", "where it looked")
    for path, outcome in answers:
        if isinstance(outcome, ServingError):
            table.add_row(path.name, "[red]error")
        else:
            table.add_row(path.name, *_classes(outcome), *_looks(outcome.transforms))
    return table


def _classes(prediction: Prediction) -> tuple[str, str]:
    """Label and probability, one line for each class."""
    return "\n".join(prediction.labels), "\n".join(f"{probability:.1%}" for probability in prediction.probabilities)


def _looks(transforms: Sequence[Transform]) -> tuple[str, str, str, str]:
    """Name, rotation, scale and place, one line for each transformer."""
    return (
        "\n".join(transform.name for transform in transforms),
        "\n".join(f"{round(transform.pose.rotation_degrees, 1) + 0.0:+.1f}°" for transform in transforms),
        "\n".join(" x ".join(f"{scale:.2f}" for scale in transform.pose.scale) for transform in transforms),
        "\n".join(_where(transform) for transform in transforms),
    )


def _where(transform: Transform) -> str:
    if not transform.quad.size:
        return "nowhere: theta is not finite"
    x, y = transform.quad.mean(axis=0)
    outside = 1 - transform.pose.inside_ratio
    return f"around ({x:.0f}, {y:.0f})" + (f", {outside:.0%} of it outside" if outside >= 0.005 else "")


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
