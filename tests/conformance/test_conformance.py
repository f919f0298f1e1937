from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import Case, matches
from differences import DIFFERENCES
from document import CASES, render
from models import MODELS, publish_models
from served import running
from targets import Target

from benchmarks.real_triton import NotAvailable, running_triton


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    repository = tmp_path_factory.mktemp("ours") / "repository"
    publish_models(repository, "onnxruntime")
    with running(
        repository, "--model-control-mode", "explicit", "--load-model", "*", "--allow-shared-memory"
    ) as served:
        target = Target("ours", served.grpc, served.http, served.metrics)
        yield target
        target.close()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    publish_models(repository, "python")
    try:
        with running_triton(repository, MODELS) as server:
            target = Target("triton", server.grpc, server.http, server.metrics)
            yield target
            target.close()
    except NotAvailable as reason:
        pytest.skip(f"no real Triton here: {reason}")


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, triton: Target) -> Iterator[Target]:
    """Ours before the real one."""
    flags = ("--engine", "triton", "--triton-url", triton.grpc, "--allow-shared-memory", "--allow-log-settings")
    with running(tmp_path_factory.mktemp("gateway"), *flags) as served:
        target = Target("gateway", served.grpc, served.http, served.metrics)
        yield target
        target.close()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_triton_answers_as_the_case_says(triton: Target, case: Case) -> None:
    observed = case.observe(triton)
    assert matches(observed, case.expected), f"{observed!r} is not {case.expected!r}"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ours_answers_as_triton_but_for_the_differences(ours: Target, case: Case) -> None:
    observed = case.observe(ours)
    expected = DIFFERENCES[case.name].ours if case.name in DIFFERENCES else case.expected
    assert matches(observed, expected), f"{observed!r} is not {expected!r}"


MANAGED_BY_TRITON = (
    "grpc: load",
    "grpc: load an unknown model",
    "grpc: load from outside of the repository",
    "grpc: unload an unknown model",
    "http: load",
    "http: load an unknown model",
    "http: unload an unknown model",
    "unload and load",
)
LABELS_NOT_SHOWN_BY_TRITON = (
    "grpc infer: classes",
    "grpc infer: more classes than there are",
    "http infer: classes",
    "http client: classes",
    "grpc stream: good and bad requests",
)
THROUGH_THE_GATEWAY = [name for name in CASES if name not in MANAGED_BY_TRITON + LABELS_NOT_SHOWN_BY_TRITON]
"""What docs/gateway.md does not name as different."""


@pytest.mark.parametrize("name", THROUGH_THE_GATEWAY)
def test_the_gateway_answers_as_either(gateway: Target, name: str) -> None:
    observed = CASES[name].observe(gateway)
    expected = [CASES[name].expected, *([DIFFERENCES[name].ours] if name in DIFFERENCES else [])]
    assert any(matches(observed, answer) for answer in expected), f"{observed!r} is none of {expected!r}"


NOT_OURS = {
    "nv_pinned_memory_pool_total_bytes": "there is no pool of pinned memory",
    "nv_pinned_memory_pool_used_bytes": "there is no pool of pinned memory",
}


def test_metrics_have_tritons_names_types_and_labels(ours: Target, triton: Target) -> None:
    """Whoever has dashboards and alerts for Triton need not change them."""
    theirs, found = (scraped(target) for target in (triton, ours))
    assert {name: family for name, family in theirs.items() if found.get(name) != family} == {
        name: theirs[name] for name in NOT_OURS
    }


def scraped(target: Target) -> dict[str, tuple[str, str, set[str]]]:
    """By name the type, the help, and the labels of the series with their values."""
    answer = target.pool.request("GET", f"http://{target.metrics}/metrics")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    families: dict[str, tuple[str, str, set[str]]] = {}
    for line in answer.data.decode().splitlines():
        if line.startswith("# HELP"):
            _, _, name, text = line.split(" ", 3)
        elif line.startswith("# TYPE"):
            families[name] = (line.split(" ")[3], text, set())
        else:
            families[name][2].add(re.sub(r"_(bucket|sum|count)(?=[{ ])", "", line.rpartition(" ")[0]))
    return families


@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_is_one(name: str) -> None:
    assert not matches(DIFFERENCES[name].ours, CASES[name].expected)


def test_the_differences_are_documented() -> None:
    document = Path(__file__).parents[2] / "docs" / "protocol-differences.md"
    assert document.read_text() == render(), "write it anew, see document.py"
