"""The whole stack of one host: brought up by `stack`, asked, watched and taken down.

Half a minute, most of it Triton's start.
"""

from __future__ import annotations

from collections.abc import Iterator
from socket import create_connection

import dashboards
import pytest
import yaml
from prometheus_server import DIRECTORY, Prometheus, wait_until
from requirements import missing
from stack import MODEL, ROOT, Stack, ask, running_stack

from benchmarks.real_triton import NotAvailable

SENT = 200
PATIENCE_S = 60


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """It must come down without remains: each process ends with 0, or this fails, and nobody listens any more."""
    try:
        with running_stack(tmp_path_factory.mktemp("stack")) as stack:
            yield stack
    except NotAvailable as reason:
        missing(f"no real Triton here: {reason}")
    for address in (stack.gateway.grpc, stack.gateway.http, *(triton.grpc for triton in stack.tritons)):
        host, _, port = address.partition(":")
        with pytest.raises(ConnectionRefusedError):
            create_connection((host, int(port)), timeout=1)


def without_data(prometheus: Prometheus, queries: list[str]) -> list[str]:
    def missing_ones() -> list[str]:
        return [query for query in queries if not prometheus.query(query)]

    wait_until(lambda: not missing_ones(), PATIENCE_S)
    return missing_ones()


def rows(prometheus: Prometheus, job: str) -> dict[str, float]:
    """By instance; once there are as many of them as there should be."""
    query = f'nv_inference_count{{job="{job}", model="{MODEL}"}}'
    wait_until(lambda: len(prometheus.query(query)) == (2 if job == "triton" else 1), PATIENCE_S)
    return {series["metric"]["instance"]: float(series["value"][1]) for series in prometheus.query(query)}


def test_what_a_client_sends_is_answered_by_both_tritons_and_counted(stack: Stack) -> None:
    before = rows(stack.prometheus, "triton")  # Triton counts its warm-up
    assert ask(stack.gateway, SENT) == SENT

    def arrived() -> dict[str, float]:
        return {triton: count - before[triton] for triton, count in rows(stack.prometheus, "triton").items()}

    def passed_on() -> float:
        return sum(rows(stack.prometheus, "stn-serve").values())

    # Each target is scraped at a moment of its own.
    wait_until(lambda: sum(arrived().values()) >= SENT and passed_on() >= SENT, PATIENCE_S)
    assert sum(arrived().values()) == SENT
    assert min(arrived().values()) > 0
    assert passed_on() == SENT
    assert len(stack.prometheus.query("stn_triton_up == 1")) == 2


def test_what_is_asked_about_triton_gives_data(stack: Stack) -> None:
    """Here there are no GPUs, of which the dashboard shows two of Triton's metrics."""
    ask(stack.gateway, 2)
    queries = [query for query in dashboards.queries("stn-serve").values() if "triton" in query]
    assert without_data(stack.prometheus, [query for query in queries if "nv_gpu_" not in query]) == []
    rules = [rule["query"] for rule in stack.prometheus.rules() if "stn_triton" in rule["query"]]
    assert rules
    compared = [rule.replace(" > ", " > bool ").replace(" < ", " < bool ") for rule in rules]
    assert without_data(stack.prometheus, compared) == []


def test_tritons_queue_scales_it_in_kubernetes(stack: Stack) -> None:
    adapter = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'job="triton"')
    assert without_data(stack.prometheus, [query]) == []
    assert len(stack.prometheus.query(query)) == 2


def test_prometheus_knows_the_services_of_compose() -> None:
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    names = {
        name
        for job in config["scrape_configs"]
        for discovery in job.get("dns_sd_configs", ())
        for name in discovery["names"]
    }
    assert names == services.keys() - {"prometheus", "grafana"}
