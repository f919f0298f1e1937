"""docker-compose.yml, as docker-compose itself understands it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from requirements import program

from stn_serve.settings import SETTINGS

ROOT = Path(__file__).parents[1]
PROFILES = {
    "cpu": {"stn-serve", "prometheus", "grafana"},
    "gpu": {"gateway", "triton", "prometheus", "grafana"},
}


def config(profile: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables}
    command = [program("docker-compose"), "--profile", profile, "config"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def services(profile: str, **variables: str) -> dict[str, Any]:
    done = config(profile, GRAFANA_PASSWORD="secret", **variables)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load(done.stdout)["services"]
    return {name: service for name, service in found.items() if profile in service["profiles"]}


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_has_its_services(profile: str) -> None:
    assert services(profile).keys() == PROFILES[profile]


@pytest.mark.parametrize("profile", PROFILES)
def test_services_are_restricted_checked_and_bounded(profile: str) -> None:
    for name, service in services(profile).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["mem_limit"], name
        assert service["cpus"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        for volume in service.get("volumes", ()):
            assert volume.endswith(":ro") or volume.startswith(("prometheus:", "grafana:")), volume


def test_who_needs_another_waits_until_it_is_healthy() -> None:
    gpu = services("gpu")
    waits = {name: service["depends_on"] for name, service in gpu.items() if "depends_on" in service}
    assert waits == {
        "gateway": {"triton": {"condition": "service_healthy"}},
        "grafana": {"prometheus": {"condition": "service_healthy"}},
    }


def test_the_world_is_let_in_on_request() -> None:
    assert services("cpu", STN_BIND="0.0.0.0")["stn-serve"]["ports"] == [
        "0.0.0.0:8000:8000/tcp",
        "0.0.0.0:8001:8001/tcp",
    ]


def test_a_missing_password_ends_the_start() -> None:
    done = config("cpu")
    assert done.returncode != 0
    assert "set GRAFANA_PASSWORD" in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_mounted_is_there_and_what_is_set_is_a_setting(profile: str) -> None:
    known = {f"STN_SERVE_{setting.name.upper()}" for setting in SETTINGS}
    for name, service in services(profile).items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in ("prometheus", "grafana") or Path(source).exists(), volume
        if name in ("stn-serve", "gateway"):
            assert service["environment"].keys() <= known


def test_every_variable_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = {part.split(":")[0].split("}")[0] for part in text.split("${")[1:]}
    lines = (ROOT / ".env.example").read_text().splitlines()
    assert used == {line.lstrip("# ").split("=")[0] for line in lines if "=" in line}
