"""What every exported model costs: against PyTorch, in int8, by operator, to the first answer, and as it grows.

    python -m benchmarks.models                       # everything, some ten minutes
    python -m benchmarks.models birds growth          # a part; the rest of the results stays
    python -m benchmarks.models --prepare             # only export and compile, into runs/models; measures nothing
    python -m benchmarks.models --report              # only write the report from what was measured

Parts are the shipped models, the paper's house number networks at full size (`paper_multi`, `paper_cnn`), `int8` (its
choices on `paper_multi`), and `growth`.
Each is measured in processes of its own, in which the engines take turns. Results go to benchmarks/results/models.json,
models.md and models.png.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import onnxruntime as ort
import torch
import typer

from benchmarks import first_answer, int8_choices, model_growth
from benchmarks.model_files import Subject, named, paper, subjects
from benchmarks.model_report import draw, render
from benchmarks.operators import by_operator, profile, transformer_percent
from stn_serve.limits import available_cpus

RESULTS = Path(__file__).parent / "results" / "models.json"
GROWTH, INT8 = "growth", "int8"
THREADS = (1, 2)
PROFILED_BATCH = 16
PROFILED_RUNS = 20


def measure(subject: Subject, folder: Path) -> dict[str, Any]:
    """Everything about one network."""
    subject.files(folder)
    times = [time for threads in THREADS for time in json.loads(_run(subject, threads, folder, "measure"))]
    first = {
        name: seconds._asdict() for name, seconds in first_answer.measure(subject.name, folder, THREADS[-1]).items()
    }
    return {"title": subject.title, "times": times, "profiles": profiles(subject, folder), "first": first}


def profiles(subject: Subject, folder: Path) -> list[dict[str, Any]]:
    """Of both precisions on one thread."""
    batch = min(PROFILED_BATCH, subject.max_batch_size)
    feed = {"image": subject.images(batch)}
    found = []
    for precision, path in subject.files(folder).items():
        nodes = profile(path, feed, 1, PROFILED_RUNS)
        operators = [(name, round(ms, 4)) for name, ms in by_operator(nodes)]
        looking = round(transformer_percent(nodes), 2)
        found.append({"precision": precision, "batch": batch, "transformer_percent": looking, "operators": operators})
    return found


def growth(folder: Path) -> dict[str, Any]:
    """Larger images, and more transformers."""
    rows = model_growth.measure(folder, THREADS[-1])
    return {"threads": THREADS[-1], "rows": [row._asdict() for row in rows]}


def int8(folder: Path) -> dict[str, Any]:
    """Its choices, of the paper's network."""
    subject = paper()["multi"]
    return {"rows": [row._asdict() for threads in THREADS for row in int8_choices.measure(subject, folder, threads)]}


def prepare(chosen: Sequence[Subject], folder: Path) -> None:
    """What takes long and is no measurement."""
    for subject in chosen:
        subject.files(folder)
        print(_run(subject, THREADS[-1], folder, "compile"), flush=True)
    int8_choices.files(paper()["multi"], folder)
    model_growth.sizes(folder)
    model_growth.transformers(folder)


def _run(subject: Subject, threads: int, folder: Path, purpose: str) -> str:
    command = [sys.executable, "-m", "benchmarks.model_times", subject.name, str(threads), str(folder), purpose]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    return result.stdout.decode().splitlines()[-1]


def machine() -> str:
    """Processors and versions."""
    cpus = Path("/proc/cpuinfo").read_text()
    [name] = re.findall(r"model name\s*: (.*)", cpus)[:1] or [platform.machine()]
    vnni = " with VNNI" if "vnni" in cpus else ""
    return f"{available_cpus()} CPUs of {name}{vnni}, ONNX Runtime {ort.__version__}, PyTorch {torch.__version__}"


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="What to measure; everything by default.")] = None,
    only_prepare: Annotated[bool, typer.Option("--prepare", help="Export and compile, measure nothing.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write the report from earlier results.")] = False,
    folder: Annotated[Path, typer.Option(help="Where exported and compiled networks are kept.")] = Path("runs/models"),
    note: Annotated[str, typer.Option(help="A sentence about the machine, for the results.")] = "",
) -> None:
    """Measure models, and write down what they cost."""
    others = {GROWTH: growth, INT8: int8}
    asked = parts or [*(subject.name for subject in subjects()), *others]
    chosen = {subject.name: subject for subject in named([part for part in asked if part not in others])}
    if only_prepare:
        prepare(list(chosen.values()), folder)
        return
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in [] if report else asked:
        measured = others[part](folder) if part in others else measure(chosen[part], folder)
        made = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), "note": note}
        results[part] = made | measured
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(render(results))
    draw(results, RESULTS.with_suffix(".png"))
    print(RESULTS.with_suffix(".md").read_text())


if __name__ == "__main__":
    typer.run(main)
