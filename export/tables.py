"""What an export found, for people: fits 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table

from export.measurement import Measurement
from export.parity import TOLERANCES, ParityReport, ParityRow, Precision


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


def measurement_table(measurement: Measurement, precision: Precision) -> Table:
    """Accuracy, theta and speed, beside float32's where it is another precision."""
    title = f"{measurement.images} validation images, {measurement.provider}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    table.add_column("")
    table.add_column(precision, justify="right")
    rows = [("right", f"{measurement.accuracy_percent:.2f} %", f"{measurement.fp32_accuracy_percent:.2f} %")]
    rows += [(f"ms at batch {speed.batch}", f"{speed.ms:.3g}", f"{speed.fp32_ms:.3g}") for speed in measurement.speed]
    if precision != "fp32":
        table.add_column("fp32", justify="right")
        rows.append(("same class", f"{measurement.top_class_agreement:.2%}", ""))
        rows.append(("theta off by, at most", f"{measurement.theta_max_error:.1g}", ""))
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    return table
