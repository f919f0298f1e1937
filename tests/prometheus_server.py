"""The real Prometheus with the configuration and the rules of deploy/prometheus, made quick: what takes minutes there
takes seconds here, and a week is a few seconds long."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlencode

import yaml
from requirements import program

DIRECTORY = Path(__file__).parents[1] / "deploy" / "prometheus"
WEEK = "5s"
START_S = 30


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; a number that is none is no data."""
        series = self._get("query", query=expression)["result"]
        return [one for one in series if one["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        """As the server understands them."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str, **parameters: str) -> Any:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error


@contextmanager
def running_prometheus(directory: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Prometheus that scrapes these addresses, by job."""
    binary = program("prometheus")
    configure(directory, targets)
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [binary, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    log = directory / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=output, stderr=output)
    try:
        wait_until(lambda: process.poll() is not None or _is_ready(address), START_S)
        assert process.poll() is None, log.read_text()
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def configure(directory: Path, targets: Mapping[str, Sequence[str]]) -> None:
    """Write the configuration for the test, which differs from the one that is deployed in times and targets only."""
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    assert targets.keys() <= jobs, "every job of the test is one of the deployed configuration"
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in targets.items()
    ]
    (directory / "rules").mkdir(parents=True)
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    for path in (DIRECTORY / "rules").glob("*.yml"):
        text = re.sub(r"^( *for:) \w+$", r"\1 1s", path.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^( *interval:) \w+$", r"\1 1s", text, flags=re.MULTILINE)
        (directory / "rules" / path.name).write_text(text.replace("offset 1w", f"offset {WEEK}"))


def _is_ready(address: str) -> bool:
    try:
        urllib.request.urlopen(f"http://{address}/-/ready", timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(done: Callable[[], object], timeout_s: float) -> None:
    """Look every tenth of a second, until it is so or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)
