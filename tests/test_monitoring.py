"""Prometheus' rules and Grafana's dashboard, in a real Prometheus that scrapes a real server.

It takes half a minute: rates need several scrapes, and alerts are caused and waited for.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

import dashboards
import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper
from onnx_models import build, publish, publish_vision
from prometheus_server import DIRECTORY, Prometheus, running_prometheus, wait_until
from requirements import program
from served import Served, running

from stn_serve import Client
from stn_serve.errors import ServingError

PATIENCE_S = 60
FRAGILE_CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_INT64 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
"""
TOO_FAR = 99


def publish_fragile(repository: Path) -> None:
    """A model that looks up numbers in a table of ten, and breaks beyond its end."""
    model = build(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        inputs=[helper.make_tensor_value_info("x", TensorProto.INT64, ["batch", 1])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        constants={"table": np.arange(10, dtype=np.float32)},
    )
    publish(repository, "fragile", model, FRAGILE_CONFIG)


class Monitored(NamedTuple):
    """A server that is asked all the time, and who watches it."""

    repository: Path
    served: Served
    prometheus: Prometheus


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    directory = tmp_path_factory.mktemp("monitored")
    repository = directory / "models"
    publish_vision(repository)
    publish_fragile(repository)
    poll = ("--model-control-mode", "poll", "--repository-poll-secs", "0.5")
    with (
        running(repository, *poll) as served,
        running_prometheus(directory / "prometheus", {"stn-serve": [served.metrics]}) as prometheus,
        asked_all_the_time(served),
    ):
        yield Monitored(repository, served, prometheus)


@contextmanager
def asked_all_the_time(served: Served) -> Iterator[None]:
    stop = Event()
    caller = Thread(target=_ask, args=(served, stop))
    caller.start()
    try:
        yield
    finally:
        stop.set()
        caller.join()


def _ask(served: Served, stop: Event) -> None:
    rng = np.random.default_rng(0)
    with Client(served.grpc, retries=0) as client:
        while not stop.wait(0.05):
            client.predict(np.full((8, 8), rng.integers(256), np.uint8), model="vision")
            client.infer("fragile", {"x": np.array([[3]])})


def without_data(prometheus: Prometheus, queries: dict[str, str]) -> list[str]:
    """The queries that give nothing, however long they are waited for."""
    missing = dict(queries)

    def all_found() -> bool:
        for name in list(missing):
            if prometheus.query(missing[name]):
                del missing[name]
        return not missing

    wait_until(all_found, PATIENCE_S)
    return [f"{name}: {expression}" for name, expression in missing.items()]


def test_every_query_of_the_dashboard_gives_data(monitored: Monitored) -> None:
    """Those about Triton are asked where there is one: in test_stack."""
    own = {name: query for name, query in dashboards.queries("stn-serve").items() if "triton" not in query}
    assert len(own) > 30
    assert without_data(monitored.prometheus, own) == []


def test_every_recording_rule_gives_data(monitored: Monitored) -> None:
    rules = [rule for rule in monitored.prometheus.rules() if rule["type"] == "recording"]
    assert len(rules) == 20
    assert without_data(monitored.prometheus, {str(rule): rule["query"] for rule in rules}) == []
    assert without_data(monitored.prometheus, {rule["name"]: rule["name"] for rule in rules}) == []
    poses = {one["metric"]["pose"] for one in monitored.prometheus.query("model:stn_pose:drift1w")}
    assert poses == {"rotation", "scale", "translation", "inside"}


def test_every_alert_compares_something_that_is_there(monitored: Monitored) -> None:
    """With `bool`, a comparison gives 0 or 1 for what it would otherwise leave out."""
    rules = [rule for rule in monitored.prometheus.rules() if rule["type"] == "alerting"]
    rules = [rule for rule in rules if "stn_triton" not in rule["query"]]
    asked = {rule["name"]: re.sub(r" ([<>]) ", r" \1 bool ", rule["query"]) for rule in rules}
    absent = asked.pop("StnAbsent")
    assert without_data(monitored.prometheus, asked) == []
    assert without_data(monitored.prometheus, {"absent": absent.removeprefix("absent(").removesuffix(")")}) == []
    assert all(rule["health"] == "ok" for rule in rules)


def test_the_autoscalers_metric_gives_data(monitored: Monitored) -> None:
    adapter = yaml.safe_load((DIRECTORY.parent / "kubernetes" / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "instance").replace("<<.LabelMatchers>>", 'job="stn-serve"')
    assert without_data(monitored.prometheus, {"queue": query}) == []


def test_a_version_that_cannot_be_loaded_fires(monitored: Monitored) -> None:
    assert "StnModelLoadFailed" not in monitored.prometheus.firing()
    version = monitored.repository / "vision" / "2"
    version.mkdir()
    (version / "model.onnx").write_bytes(b"cut off")
    wait_until(lambda: "StnModelLoadFailed" in monitored.prometheus.firing(), PATIENCE_S)
    assert "StnModelLoadFailed" in monitored.prometheus.firing()
    assert monitored.prometheus.query('ALERTS{alertname="StnModelLoadFailed", alertstate="firing", model="vision"}')


def test_requests_that_fail_burn_the_error_budget_and_fire(monitored: Monitored) -> None:
    assert not {name for name in monitored.prometheus.firing() if name.startswith("StnErrorBudget")}
    deadline = time.monotonic() + PATIENCE_S
    with Client(monitored.served.grpc, retries=0) as client:
        while "StnErrorBudgetBurnsFast" not in monitored.prometheus.firing():
            assert time.monotonic() < deadline
            with suppress(ServingError):
                client.infer("fragile", {"x": np.array([[TOO_FAR]])})
            time.sleep(0.1)
    burning = monitored.prometheus.query('ALERTS{alertname="StnErrorBudgetBurnsFast", alertstate="firing"}')
    assert [one["metric"]["model"] for one in burning] == ["fragile"]


def test_promtool_accepts_configuration_and_rules() -> None:
    """Without its warnings either, which are about rules that are there twice."""
    checked = subprocess.run(
        [program("promtool"), "check", "config", "prometheus.yml"], cwd=DIRECTORY, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "warning" not in (checked.stdout + checked.stderr).lower()


@pytest.mark.parametrize("file", ["alert_rules.yml", "alert_rules_drift.yml"])
def test_alerts_that_take_hours_fire_when_they_should_and_not_before(file: str) -> None:
    tested = subprocess.run(
        [program("promtool"), "test", "rules", file],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_leads_to_a_section_of_the_runbook() -> None:
    rules = yaml.safe_load((DIRECTORY / "rules" / "alerts.yml").read_text())
    runbook = (DIRECTORY.parents[1] / "docs" / "runbook.md").read_text()
    sections = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)", runbook, re.MULTILINE)}
    for group in rules["groups"]:
        for rule in group["rules"]:
            page, _, section = rule["annotations"]["runbook"].partition("#")
            assert (page, section in sections) == ("docs/runbook.md", True), rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert f"`{rule['alert']}`" in runbook


def test_grafana_is_given_its_dashboard_and_its_source() -> None:
    """As far as that can be seen without Grafana: the names that its files use of each other."""
    provisioning = DIRECTORY.parent / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "stn-serve.yml").read_text())["providers"]
    compose = yaml.safe_load((DIRECTORY.parents[1] / "docker-compose.yml").read_text())
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
    assert source["url"] == "http://prometheus:9090"
    for path in dashboards.DIRECTORY.glob("*.json"):
        dashboard = json.loads(path.read_text())
        identities = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(identities)) == len(identities)
        chosen = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
        assert chosen["datasource"]["current"]["value"] == source["uid"]
        used = set(re.findall(r"\$(?:\{(\w+)\}|([a-z]\w+))", path.read_text()))
        assert {name for pair in used for name in pair if name} <= chosen.keys()
