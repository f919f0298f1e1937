"""deploy/kubernetes, rendered by the real kustomize and held against the schemas of Kubernetes, offline."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from custom_resources import SPECIFICATIONS
from typer.testing import CliRunner

from stn_serve.cli import app

DIRECTORY = Path(__file__).parents[1] / "deploy" / "kubernetes"
BASES = ("stn-serve", "triton", "monitoring", "kserve")
VERSIONS = ("1.30", "1.37")
"""The oldest Kubernetes that has all that is used, and the newest whose schema is at hand."""
WORKLOADS = ("Deployment", "StatefulSet")

Resource = dict[str, Any]


@cache
def rendered(base: str) -> list[Resource]:
    command = [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(DIRECTORY / base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize warns of nothing"
    return list(yaml.safe_load_all(done.stdout))


def of_kind(base: str, *kinds: str) -> list[Resource]:
    return [resource for resource in rendered(base) if resource["kind"] in kinds]


def containers(base: str) -> Iterator[tuple[Resource, Resource]]:
    """Pod and container of each workload."""
    for workload in of_kind(base, *WORKLOADS):
        pod = workload["spec"]["template"]["spec"]
        yield from ((pod, container) for container in pod["containers"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("base", BASES)
def test_resources_are_those_of_the_published_schemas(base: str, version: str) -> None:
    for resource in rendered(base):
        kind = (resource["apiVersion"], resource["kind"])
        if kind in SPECIFICATIONS:
            jsonschema.validate(resource["spec"], SPECIFICATIONS[kind])
            if "containers" in resource["spec"]:
                pod = {"containers": resource["spec"]["containers"]}
                resource = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
        if kind not in SPECIFICATIONS or resource["kind"] == "Pod":
            kubernetes_validate.validate(resource, version, strict=True)


def test_the_schemas_refuse_what_is_misspelt() -> None:
    [deployment] = of_kind("stn-serve", "Deployment")
    broken = {**deployment, "spec": {**deployment["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)
    [monitor] = of_kind("monitoring", "ServiceMonitor")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**monitor["spec"], "endpoint": []}, SPECIFICATIONS[monitor["apiVersion"], monitor["kind"]])


@pytest.mark.parametrize("base", ["stn-serve", "triton"])
def test_everything_that_selects_pods_finds_some(base: str) -> None:
    workloads = {workload["metadata"]["name"]: workload for workload in of_kind(base, *WORKLOADS)}
    labels = [workload["spec"]["template"]["metadata"]["labels"].items() for workload in workloads.values()]
    ports = {port["name"] for _, container in containers(base) for port in container["ports"]}
    for service in of_kind(base, "Service"):
        assert any(service["spec"]["selector"].items() <= have for have in labels)
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for resource in of_kind(base, "PodDisruptionBudget", *WORKLOADS):
        assert any(resource["spec"]["selector"]["matchLabels"].items() <= have for have in labels)
    for policy in of_kind(base, "NetworkPolicy"):
        assert any(policy["spec"]["podSelector"]["matchLabels"].items() <= have for have in labels)
        assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} <= ports
    for scaler in of_kind(base, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert workloads[target["name"]]["kind"] == target["kind"]
        assert "replicas" not in workloads[target["name"]]["spec"], "the number would be set back with every apply"
    assert len(of_kind(base, "HorizontalPodAutoscaler")) == len(of_kind(base, "PodDisruptionBudget")) == len(workloads)


@pytest.mark.parametrize("base", ["stn-serve", "triton"])
def test_pods_are_probed_spread_restricted_and_let_finish(base: str) -> None:
    for pod, container in containers(base):
        assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
        assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
        assert {spread["topologyKey"] for spread in pod["topologySpreadConstraints"]} == {
            "kubernetes.io/hostname",
            "topology.kubernetes.io/zone",
        }
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]
        settings = {variable["name"]: variable["value"] for variable in container.get("env", ())}
        finishing = float(settings.get("STN_SERVE_GRACE_S", 30)) + float(settings.get("STN_SERVE_DRAIN_S", 0))
        assert container["lifecycle"]["preStop"]["sleep"]["seconds"] + finishing < pod["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("base", ["stn-serve", "triton"])
def test_the_command_takes_what_pods_are_started_with(base: str) -> None:
    found = [container for _, container in containers(base) if container["name"] == "stn-serve"]
    for container in [*found, *of_kind("kserve", "ServingRuntime")[0]["spec"]["containers"]]:
        environment = {variable["name"]: variable["value"] for variable in container.get("env", ())}
        shown = CliRunner().invoke(app, [*container["args"], "--show-settings"], env=environment)
        assert shown.exit_code == 0, shown.output
        assert shown.output.count("# environment variable") == len(environment)


def test_the_gateway_knows_as_many_tritons_as_there_may_be() -> None:
    [gateway] = [container for _, container in containers("triton") if container["name"] == "stn-serve"]
    [addresses] = [one["value"] for one in gateway["env"] if one["name"] == "STN_SERVE_TRITON_URL"]
    [most] = [
        scaler["spec"]["maxReplicas"]
        for scaler in of_kind("triton", "HorizontalPodAutoscaler")
        if scaler["metadata"]["name"] == "triton"
    ]
    assert addresses.split(",") == [f"triton-{number}.triton:8001" for number in range(most)]


def test_a_service_monitor_finds_the_metrics_of_both() -> None:
    [monitor] = of_kind("monitoring", "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    scraped = {
        service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
        for service in of_kind("triton", "Service")
        if wanted <= service["metadata"]["labels"].items()
        and monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    }
    assert scraped == {"stn-serve", "triton"}, "the jobs of rules and dashboard"


def test_autoscalers_follow_the_metric_that_the_adapter_makes() -> None:
    adapter = yaml.safe_load((DIRECTORY / "prometheus-adapter.yaml").read_text())
    made = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    for scaler in of_kind("triton", "HorizontalPodAutoscaler"):
        followed = {
            metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"
        }
        assert followed == made


def test_the_operators_rules_are_those_of_prometheus() -> None:
    written = runpy.run_path(str(DIRECTORY / "monitoring" / "prometheus_rule.py"))
    assert (DIRECTORY / "monitoring" / "prometheus-rule.yaml").read_text() == written["document"](), "run `make rules`"
