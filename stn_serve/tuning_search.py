"""Which settings are tried, and which is the best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from stn_serve.errors import ConfigurationError
from stn_serve.tuning_load import Point
from stn_serve.tuning_setting import Setting, Space

TIE = 0.03
"""Throughputs that differ by less than this share are the same."""
FINALISTS = 3
"""Of the best, measured again beside the present setting: what seems the best of many may have been lucky."""
CONFIRMATIONS = 2
"""How often."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured of one setting; no points where the server did not start with it."""

    setting: Setting
    points: tuple[Point, ...]
    problem: str = ""
    """What the server said, where it did not start or some requests failed."""

    def best_point(self, target_ms: float) -> Point | None:
        """The one with the most answers a second among those within the target."""
        within = [point for point in self.points if meets(point, target_ms)]
        return max(within, key=lambda point: point.throughput, default=None)

    def confirmed(self, other: Trial) -> Trial:
        """What both have seen of the numbers of callers that the other was for."""
        seen = {point.concurrency: point for point in self.points}
        return replace(self, points=tuple(seen[point.concurrency].with_another(point) for point in other.points))


class Choice(NamedTuple):
    """The best of some trials; `meets_target` says whether it is good enough."""

    setting: Setting
    point: Point
    meets_target: bool


Measure = Callable[[Setting, Sequence[int]], Trial]
"""Measures a setting with these numbers of callers; with none, with as many as it takes to find where it is best."""


def meets(point: Point, target_ms: float) -> bool:
    """Whether 99 % of the answers came in time, and none failed."""
    return not point.failures and point.p99_ms <= target_ms


def between(points: Iterable[Point], target_ms: float) -> int:
    """A number of callers between the fewest that missed the target and the most, of fewer, that met it; 0 for none."""
    points = list(points)
    fewest = min((point.concurrency for point in points if not meets(point, target_ms)), default=0)
    most = max((point.concurrency for point in points if point.concurrency < fewest), default=0)
    middle = round((most * fewest) ** 0.5)
    return middle if most < middle < fewest else 0


def choose(trials: Iterable[Trial], target_ms: float) -> Choice | None:
    """The setting with the most answers a second within the target.

    Of those that are about equal, the one that takes the least CPU time for an answer; of those that are equal in that,
    too, the one that was tried first: each stage begins with what it need not change. Where none meets the target, the
    fastest of all. None where nothing was answered.
    """
    trials = list(trials)
    found = [(trial.setting, point) for trial in trials if (point := trial.best_point(target_ms))]
    if not found:
        answered = [(trial.setting, point) for trial in trials for point in trial.points if point.latencies_ms]
        return min((Choice(*each, False) for each in answered), key=lambda choice: choice.point.p99_ms, default=None)
    most = max(point.throughput for _, point in found)
    equal = [Choice(*each, True) for each in found if each[1].throughput >= (1 - TIE) * most]
    least = min(choice.point.cpu_ms for choice in equal)
    return next(choice for choice in equal if choice.point.cpu_ms <= (1 + TIE) * least)


class Found(NamedTuple):
    """What a search has found."""

    trials: list[Trial]
    """As they were measured first: the curves."""
    verdicts: list[Trial]
    """The same, but of the best what was confirmed."""
    choice: Choice | None


def find_best(current: Setting, space: Space, measure: Measure, target_ms: float) -> Found:
    """Search, and choose among the best after they have been measured again.

    Raises:
        ConfigurationError: nothing is answered with the current setting; says why.
    """
    trials = search(current, space, measure, target_ms)
    confirmed = {trial.setting: trial for trial in confirm(trials, current, measure, target_ms)}
    verdicts = [confirmed.get(trial.setting, trial) for trial in trials]
    choice = choose(confirmed.values(), target_ms)
    return Found(trials, verdicts, choice if choice and choice.meets_target else choose(verdicts, target_ms))


def search(current: Setting, space: Space, measure: Measure, target_ms: float) -> list[Trial]:
    """Measure the current setting, then stage by stage those around the best so far.

    Raises:
        ConfigurationError: nothing is answered with the current setting; says why.
    """
    trials = {current: measure(current, ())}
    if not any(point.latencies_ms for point in trials[current].points):
        raise ConfigurationError(f"the model does not answer as it is configured now: {trials[current].problem}")
    for stage in space.stages():
        best = choose(trials.values(), target_ms)
        for setting in stage(best.setting if best else current):
            if setting not in trials:
                trials[setting] = measure(setting, ())
    return list(trials.values())


def confirm(trials: Sequence[Trial], current: Setting, measure: Measure, target_ms: float) -> list[Trial]:
    """Measure the current setting and the best again in turn, each where it was best, and drop what was only lucky."""
    within = [(point, trial) for trial in trials if (point := trial.best_point(target_ms))]
    within.sort(key=lambda each: each[0].throughput, reverse=True)
    chosen = [*within[:FINALISTS], *(each for each in within[FINALISTS:] if each[1].setting == current)]
    found = {trial.setting: trial for trial in trials}
    for _ in range(CONFIRMATIONS):
        for point, trial in chosen:
            found[trial.setting] = found[trial.setting].confirmed(measure(trial.setting, [point.concurrency]))
    return [found[trial.setting] for _, trial in chosen]


def most_trials(current: Setting, space: Space) -> int:
    """How many a search takes, about, before the best are confirmed: stages depend on what those before them find."""
    settings: Collection[Setting] = {current, *(setting for stage in space.stages() for setting in stage(current))}
    return len(settings)
