"""What `stn tune` has measured, to look at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stn_serve.tuning_load import Point
from stn_serve.tuning_search import Choice, Trial
from stn_serve.tuning_setting import Setting


def label(setting: Setting) -> str:
    """In few words."""
    parts = [f"{setting.instances} x {setting.threads} threads", f"batch {setting.batch}"]
    if setting.delay_us:
        parts.append(f"{setting.delay_us / 1e3:g} ms delay")
    return ", ".join([*parts, f"{setting.workers} worker{'s' if setting.workers > 1 else ''}"])


def callers(point: Point) -> str:
    """How many there were."""
    return f"{point.concurrency} caller{'s' if point.concurrency > 1 else ''}"


def draw_curve(trials: Iterable[Trial], current: Setting, choice: Choice | None, target_ms: float, path: Path) -> None:
    """Answers a second against the latency of 99 %, a line for each setting through its numbers of callers."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axis = figure.subplots()
    for trial in trials:
        if not trial.points:
            continue
        is_chosen = choice is not None and choice.meets_target and trial.setting == choice.setting
        note = " (chosen)" * is_chosen + " (now)" * (trial.setting == current)
        axis.plot(
            [point.throughput for point in trial.points],
            [point.p99_ms for point in trial.points],
            "--o" if trial.setting == current else "-o",
            label=label(trial.setting) + note,
            markersize=4,
            linewidth=3 if is_chosen else 1,
            zorder=3 if is_chosen else 2,
        )
        for point in trial.points:
            if is_chosen:
                where = (point.throughput, point.p99_ms)
                axis.annotate(f" {callers(point)}", where, va="top", fontsize="small")
    axis.axhline(target_ms, color="tab:red", linestyle=":", label=f"target: {target_ms:g} ms")
    axis.set(xlabel="answers a second", ylabel="latency of 99 % of the answers, ms", yscale="log")
    axis.yaxis.set_major_formatter(LogFormatter())  # 20, not 2 x 10^1
    axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)
