"""`stn tune`, with a real server and real load; how it chooses is tested as the pure function it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from onnx_models import publish_ident, publish_vision
from PIL import Image
from rich.console import Console
from served import run_stn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.durations import parse_duration_s
from stn_serve.errors import ConfigurationError
from stn_serve.repository import read_config
from stn_serve.tune import results
from stn_serve.tuning_load import Point, request_for
from stn_serve.tuning_search import Trial, between, choose, find_best
from stn_serve.tuning_setting import Setting, Space

NOW = Setting(instances=1, threads=2, batch=64)
SPACE = Space(cpus=8, max_batch_size=64, target_us=20_000, most_workers=4)


def point(callers: int, answers: int, p99_ms: float, cpu_ms: float = 1.0, failures: int = 0) -> Point:
    """`answers` in a second, all as slow as the slowest."""
    latencies = (p99_ms,) * answers
    cpu_s = cpu_ms * answers / 1e3
    return Point(concurrency=callers, seconds=1.0, latencies_ms=latencies, failures=failures, cpu_s=cpu_s)


def trial(*points: Point, **changes: int) -> Trial:
    return Trial(replace(NOW, **changes), points)


def chosen(*trials: Trial) -> tuple[Setting, float, bool]:
    choice = choose(trials, 20)
    assert choice
    return choice.setting, choice.point.throughput, choice.meets_target


def test_the_most_answers_within_the_target_win() -> None:
    slow, fast = trial(point(1, 100, 5), point(4, 900, 21)), trial(point(1, 80, 5), point(4, 300, 19), threads=1)
    assert chosen(slow, fast) == (fast.setting, 300, True)


def test_what_fails_is_not_fast() -> None:
    assert chosen(trial(point(1, 100, 5)), trial(point(1, 900, 5, failures=1), threads=1)) == (NOW, 100, True)


def test_of_equals_the_cheapest_wins_and_then_the_one_that_changes_least() -> None:
    equals = trial(point(1, 990, 5)), trial(point(1, 1000, 5), batch=16), trial(point(1, 980, 9, cpu_ms=0.5), threads=1)
    assert chosen(*equals)[0] == equals[2].setting
    assert chosen(*equals[:2])[0] == NOW


def test_where_none_meets_the_target_the_fastest_is_named() -> None:
    assert chosen(trial(point(1, 100, 30)), trial(point(1, 10, 25), threads=1)) == (replace(NOW, threads=1), 10, False)
    assert choose([trial(), trial(point(1, 0, 0), threads=1)], 20) is None


@pytest.mark.parametrize(
    ("callers", "expected"),
    [([(1, 5), (4, 9), (16, 30)], 8), ([(1, 5), (4, 9), (8, 12), (16, 30)], 11), ([(4, 9), (5, 30)], 0)],
)
def test_numbers_of_callers_close_in_on_the_target(callers: list[tuple[int, float]], expected: int) -> None:
    assert between([point(count, 100, p99_ms) for count, p99_ms in callers], 20) == expected


@pytest.mark.parametrize("points", [[], [point(1, 100, 30)], [point(1, 100, 5), point(64, 100, 6)]])
def test_there_is_nothing_between_where_the_target_is_never_or_always_met(points: list[Point]) -> None:
    assert between(points, 20) == 0


def test_the_table_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [
        trial(point(4, 900, 21)),
        trial(point(64, 20_000, 19.96, cpu_ms=12.34), threads=16, delay_us=2500),
        trial(threads=1),
    ]
    Console(width=80).print(results(trials, NOW, choose(trials, 20), 20))
    printed = capsys.readouterr().out
    assert "…" not in printed
    rows = [line.split() for line in printed.splitlines()[-4:-1]]
    assert rows == [
        ["1", "2", "64", "0", "1", "4", "900", "21.0", "1.00", "misses"],
        ["1", "16", "64", "2.5", "1", "64", "20000", "20.0", "12.34", "chosen"],
        ["1", "1", "64", "0", "1", "fails"],
    ]


def test_a_search_goes_on_from_the_best() -> None:
    asked: list[Setting] = []

    def measure(setting: Setting, concurrencies: Sequence[int]) -> Trial:
        """On a machine where two workers, each with two batches of 16 rows on two threads at a time, are the best."""
        asked.append(setting)
        likes = (
            setting.instances * setting.workers == 4,
            setting.threads == 2,
            setting.batch == 16,
            setting.workers == 2,
        )
        answers = 100 * (1 + sum(likes)) - setting.delay_us // 100
        return Trial(setting, tuple(point(callers, answers, 10) for callers in concurrencies or (1, 4)))

    found = find_best(NOW, SPACE, measure, 20)
    assert found.choice
    assert found.choice.setting == Setting(instances=2, threads=2, batch=16, workers=2)
    assert found.choice.meets_target
    assert asked[0] == NOW
    assert asked.count(found.choice.setting) == asked.count(NOW) == 3
    assert len(found.choice.point.latencies_ms) == 3 * found.choice.point.throughput
    assert len(asked) < 30, "every combination would be hundreds"


def test_what_was_only_lucky_is_not_chosen() -> None:
    lucky = replace(NOW, threads=1)

    def measure(setting: Setting, concurrencies: Sequence[int]) -> Trial:
        assert not concurrencies or concurrencies == [4]
        return Trial(setting, (point(4, 900 if setting == lucky and not concurrencies else 500, 10),))

    found = find_best(NOW, replace(SPACE, cpus=2, most_workers=1), measure, 20)
    assert found.choice
    verdict = next(trial for trial in found.verdicts if trial.setting == lucky)
    assert verdict.points[0].throughput == pytest.approx((900 + 500 + 500) / 3)
    late = find_best(NOW, SPACE, lambda setting, callers: Trial(setting, (point(4, 500, 30 if callers else 10),)), 20)
    assert late.choice
    assert late.choice.setting not in {trial.setting for trial in late.verdicts if not trial.best_point(20)}


def test_a_search_ends_where_nothing_is_answered_now() -> None:
    with pytest.raises(ConfigurationError, match="does not answer as it is configured now: no such GPU"):
        find_best(NOW, SPACE, lambda setting, _: Trial(setting, (), "no such GPU"), 20)


@pytest.mark.parametrize("cpus", [1, 2, 6, 16])
def test_no_setting_asks_for_more_threads_than_there_are_cpus(cpus: int) -> None:
    space = replace(SPACE, cpus=cpus, most_workers=cpus)
    now = replace(NOW, threads=cpus)
    for stage in space.stages():
        for setting in stage(now):
            assert 1 <= setting.workers * setting.threads * setting.instances <= cpus
            assert 1 <= setting.batch <= 64


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1.5s", 1.5), (" 500 us ", 5e-4), ("2min", 120)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration_s("--x", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["20", "", "ms", "-5ms", "0s", "0.0ms", "1h", "1e3ms", "nan s", "1,5s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"--x is '.*', expected a number above 0 with its unit \(us, ms, s or"
    ):
        parse_duration_s("--x", text)


def with_text(directory: Path, change: Callable[[str], str]) -> ModelConfig:
    path = directory / "config.pbtxt"
    path.write_text(change(path.read_text()))
    return text_format.Parse(path.read_text(), ModelConfig())


def test_a_setting_is_read_from_a_configuration_and_written_back(tmp_path: Path) -> None:
    directory = publish_ident(tmp_path)
    written = with_text(
        directory, lambda text: text.replace("batching { }", "batching { preferred_batch_size: [2, 4] }")
    )
    now = Setting.of(read_config(directory))
    assert (now.instances, now.batch, now.delay_us, now.workers) == (1, 4, 0, 1)
    assert now.applied(written, now) == written
    wanted = Setting(instances=2, threads=3, batch=8, delay_us=70)
    changed = wanted.applied(written, now)
    assert changed.max_batch_size == 8
    assert changed.instance_group[0].kind == written.instance_group[0].kind
    (directory / "config.pbtxt").write_text(text_format.MessageToString(changed))
    assert Setting.of(read_config(directory)) == wanted


def test_a_request_is_what_the_warm_up_runs_on(tmp_path: Path) -> None:
    directory = publish_vision(tmp_path)
    warmup = 'model_warmup { inputs { key: "image" value { data_type: TYPE_UINT8 dims: [8, 8, 1] zero_data: true } } }'
    assert bytes(64) not in request_for(directory, read_config(directory))
    with_text(directory, lambda text: f"{text}\n{warmup}")
    assert bytes(64) in request_for(directory, read_config(directory))


def stn_tune(repository: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """On one CPU, where there is little to try, and with a single caller."""
    command = [sys.executable, "-m", "stn_serve", "tune", "vision", "--model-repository", str(repository), *flags]
    cpu = {min(os.sched_getaffinity(0))}
    return subprocess.run(
        [*command, "--seconds", "0.1", "--concurrency", "1"],
        cwd=repository.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "STN_SERVE_DRAIN_S": "-1"},  # for another server, and wrong at that: it must not matter here
        preexec_fn=lambda: os.sched_setaffinity(0, cpu),
    )


def test_a_model_is_tuned_and_the_rest_of_its_configuration_stays(tmp_path: Path) -> None:
    """Takes some seconds, because it starts six servers: a batch that waits for company answers a lone caller late."""
    path = publish_vision(tmp_path / "models") / "config.pbtxt"
    delay = "max_queue_delay_microseconds: 100000"
    before = with_text(
        path.parent, lambda text: f"# by hand\n{text}".replace("batching { }", f"batching {{ {delay} }}")
    )
    result = stn_tune(tmp_path / "models", "--target-p99", "1s")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r" 0 .* chosen", result.stdout)
    assert result.stdout.endswith("Start the server with:  stn serve --workers 1\n")
    with Image.open(tmp_path / "vision_tuning.png") as picture:
        assert picture.format == "PNG"
    assert path.read_text().startswith("# by hand\n")
    before.dynamic_batching.ClearField("max_queue_delay_microseconds")
    assert text_format.Parse(path.read_text(), ModelConfig()) == before


def test_a_target_that_nothing_meets_changes_nothing(tmp_path: Path) -> None:
    path = publish_vision(tmp_path / "models") / "config.pbtxt"
    with_text(path.parent, lambda text: text.replace("max_batch_size: 4", "max_batch_size: 1"))
    before = path.read_text()
    result = stn_tune(tmp_path / "models", "--target-p99", "1us")
    assert result.returncode == 1
    assert "No setting meets the target of 0.001 ms. The fastest is 1 x 1 threads, batch 1, 1 worker" in result.stdout
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--target-p99", "20"), "--target-p99 is '20', expected a number above 0 with its unit"),
        (("--target-p99", "1s", "--concurrency", "4,x"), "--concurrency is '4,x', expected numbers of at least 1"),
        (("--target-p99", "1s", "--output", "curve.txt"), "--output is 'curve.txt', expected a .png"),
        (("--target-p99", "1s", "--model-repository", "nowhere"), "model repository nowhere is not a directory"),
    ],
)
def test_mistakes_are_named_before_anything_is_measured(flags: tuple[str, ...], message: str) -> None:
    result = run_stn("tune", "digits", *flags)
    assert result.returncode == 2
    assert message in result.stderr
