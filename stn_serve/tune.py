"""`stn tune`: find the settings that serve a model best on this machine, by measuring, and write them down."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stn_serve.config_rules import CONFIG_FILE
from stn_serve.config_text import replace_file
from stn_serve.durations import parse_duration_s
from stn_serve.errors import ConfigurationError
from stn_serve.limits import available_cpus
from stn_serve.repository import read_config
from stn_serve.repository_check import directories
from stn_serve.tuning_bench import REFINEMENTS, Bench
from stn_serve.tuning_curve import callers, draw_curve, label
from stn_serve.tuning_load import WARM_UP_S, Point
from stn_serve.tuning_search import CONFIRMATIONS, FINALISTS, Choice, Measure, Trial, find_best, most_trials
from stn_serve.tuning_setting import Setting, Space

START_S = 3.0
"""What a server takes to start and to stop, about; with large models it is more."""
FEW_ANSWERS = 300
"""Of fewer, what 99 % took is what the two or three slowest took."""


def tune(
    model: Annotated[str, typer.Argument(help="Its name in the repository.")],
    target_p99: Annotated[str, typer.Option(help="What 99 % of the answers may take, such as 20ms or 1.5s.")],
    model_repository: Annotated[Path, typer.Option(help="The model repository.")] = Path("model_repository"),
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 2.0,
    concurrency: Annotated[str, typer.Option(help="Numbers of callers to measure with.")] = "1,4,16,64",
    max_workers: Annotated[int | None, typer.Option(min=1, help="Most that are tried; by default one a CPU.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what was found, but change nothing.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where the curve is drawn; MODEL_tuning.png by default.")] = None,
) -> None:
    """Find instances, threads, batch size, queue delay and workers for this machine, and write them to config.pbtxt.

    Starts a server on a copy of the model with one setting after the other, and asks it over gRPC: one image a request,
    from as many callers as --concurrency says, who each wait for their answer and ask again. What answers most a second
    while 99 % of the answers come within the target is chosen; numbers of callers in between are tried to find where it
    is just met. The callers take their share of this machine's CPUs, and nothing else should run on it meanwhile.

    Only what was found is changed in config.pbtxt; comments stay, and so does max_batch_size, on which callers rely.
    The number of workers is not the model's: it is printed, for you to start the server with. Exit code 1 if no
    setting meets the target.

    For example:

        stn tune digits --target-p99 20ms

        stn tune birds --target-p99 0.5s --seconds 5 --concurrency 1,4,8 --dry-run

        stn tune digits --target-p99 20ms --max-workers 1 --output digits.png
    """
    target_ms = 1e3 * parse_duration_s("--target-p99", target_p99)
    concurrencies = _concurrencies(concurrency)
    picture = _picture(output, model)
    directory = directories(model_repository, model)[0]
    cpus = available_cpus()
    space = Space.of(read_config(directory), cpus, target_ms / 1e3, max_workers or cpus)
    console = Console(soft_wrap=True)
    with Bench.of(directory, concurrencies, seconds, target_ms) as bench:
        count, again = most_trials(bench.current, space), CONFIRMATIONS * (FINALISTS + 1)
        points = count * (len(concurrencies) + REFINEMENTS) + again
        minutes = (points * (seconds + WARM_UP_S) + (count + again) * START_S) / 60
        plan = f"About {count + again} trials on {cpus} CPUs, {minutes:.1f} minutes at most."
        console.print(f"Now: {label(bench.current)}. {plan}")
        with _progress(count + again) as progress:
            found = find_best(bench.current, space, _reported(bench.measure, progress), target_ms)
            progress.update(progress.task_ids[0], description="", total=progress.tasks[0].completed)
        choice = found.choice
        console.print(results(found.verdicts, bench.current, choice, target_ms))
        if picture:
            draw_curve(found.trials, bench.current, choice, target_ms, picture)
        console.print(
            f"The curve: {picture}" if picture else "No curve: pip install 'stn-serve[train]' for matplotlib."
        )
        if choice is None or not choice.meets_target:
            console.print(f"[red]No setting meets the target[/] of {target_ms:g} ms. {_closest(choice)}")
            raise typer.Exit(1)
        console.print(conclusion(found.verdicts, bench.current, choice, target_ms))
        _write(console, bench, choice.setting, None if dry_run else directory / CONFIG_FILE)


def _concurrencies(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigurationError(f"--concurrency is '{text}', expected numbers of at least 1, such as 1,4,16")
    return [int(part) for part in parts]


def _picture(output: Path | None, model: str) -> Path | None:
    """Looked at before anything is measured; None where nothing can be drawn, and nobody has asked for it."""
    if importlib.util.find_spec("matplotlib") is None:
        if output:
            raise ConfigurationError(
                "--output needs matplotlib, which is not installed: pip install 'stn-serve[train]'"
            )
        return None
    path = output or Path(f"{model}_tuning.png")
    if path.suffix.lower() not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise ConfigurationError(f"--output is '{path}', expected a .png, .svg or .pdf in a directory that exists")
    return path


def _progress(count: int) -> Progress:
    """Slow to refresh: the server that is measured needs the CPUs."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    progress = Progress(*columns, console=Console(stderr=True), refresh_per_second=2)
    progress.add_task("", total=count)
    return progress


def _reported(measure: Measure, progress: Progress) -> Measure:
    [task] = progress.task_ids

    def measure_and_report(setting: Setting, concurrencies: Sequence[int]) -> Trial:
        progress.update(task, description=label(setting))
        trial = measure(setting, concurrencies)
        progress.advance(task)
        return trial

    return measure_and_report


def results(trials: Sequence[Trial], current: Setting, choice: Choice | None, target_ms: float) -> Table:
    """What was tried: each setting where it answers most within the target, or is fastest if it never is.

    Fits 80 columns.
    """
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for heading in (
        "instances",
        "threads",
        "batch",
        "delay\nms",
        "workers",
        "callers",
        "answers\n/s",
        "p99\nms",
        "CPU\nms",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for trial in trials:
        chosen = choice is not None and choice.meets_target and trial.setting == choice.setting
        style = "bold green" if chosen else None if trial.best_point(target_ms) else "dim"
        setting = trial.setting
        what = setting.instances, setting.threads, setting.batch, f"{setting.delay_us / 1e3:g}", setting.workers
        table.add_row(*map(str, what), *_cells(trial, target_ms), _note(trial, chosen, current, target_ms), style=style)
    return table


def _note(trial: Trial, chosen: bool, current: Setting, target_ms: float) -> str:
    if chosen:
        return "chosen"
    if not trial.points:
        return "fails"
    if not trial.best_point(target_ms):
        return "misses"
    return "now" if trial.setting == current else ""


def _cells(trial: Trial, target_ms: float) -> list[str]:
    point = trial.best_point(target_ms) or min(trial.points, key=lambda point: point.p99_ms, default=None)
    if point is None or not point.latencies_ms:
        return [""] * 4
    return [str(point.concurrency), f"{point.throughput:.0f}", f"{point.p99_ms:.1f}", f"{point.cpu_ms:.2f}"]


def _closest(choice: Choice | None) -> str:
    if choice is None:
        return "Nothing was answered."
    return f"The fastest is {label(choice.setting)}: {_seen(choice.point)}. Nothing is changed."


def conclusion(trials: Sequence[Trial], current: Setting, choice: Choice, target_ms: float) -> str:
    """The chosen setting beside the present one."""
    [now] = [trial.best_point(target_ms) for trial in trials if trial.setting == current]
    lines = [f"Chosen: [bold]{label(choice.setting)}[/]: {_seen(choice.point)}."]
    if choice.setting == current:
        lines = [f"The present setting is the best: {_seen(choice.point)}."]
    elif now is None:
        lines.append("The present setting misses the target.")
    else:
        ratio = choice.point.throughput / now.throughput
        lines.append(f"Now: {_seen(now)}; the chosen setting answers {ratio:.2f} times as many.")
    if len(choice.point.latencies_ms) < FEW_ANSWERS:
        count = len(choice.point.latencies_ms)
        lines.append(
            f"[yellow]That rests on {count} answers: measure longer with --seconds to be sure of their 99 %.[/]"
        )
    return "\n".join(lines)


def _seen(point: Point) -> str:
    return f"{point.throughput:.0f} answers/s to {callers(point)}, 99 % within {point.p99_ms:.1f} ms"


def _write(console: Console, bench: Bench, setting: Setting, path: Path | None) -> None:
    """Into the configuration; None only shows what would be there."""
    text = bench.text_with(setting)
    if text == bench.text:
        console.print(f"{CONFIG_FILE} stays as it is.")
    elif path:
        if path.read_text(encoding="utf-8") != bench.text:
            raise ConfigurationError(f"{path} was changed while its model was measured, and is left as it is")
        replace_file(path, text)
        console.print(f"Written to {path}.")
    else:
        console.print(f"{CONFIG_FILE} would get:")
        console.print("\n".join(_changed_lines(bench.text, text)), markup=False, highlight=False)
    console.print(f"Start the server with:  stn serve --workers {setting.workers}")


def _changed_lines(before: str, after: str) -> list[str]:
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), CONFIG_FILE, "tuned", lineterm=""))
