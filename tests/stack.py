"""The profile `gpu` of docker-compose.yml without containers: two real Tritons, stn-serve as their gateway, Prometheus,
each with the command and the variables that its service has there.

    python tests/stack.py    # brings it up, asks it, shows what Prometheus has seen, and takes it down
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from prometheus_server import Prometheus, running_prometheus, wait_until
from python_backend import wrap
from served import Served, run_stn, running

from benchmarks.real_triton import Triton
from stn_serve import Client

ROOT = Path(__file__).parents[1]
MODEL = "digits"
IMAGE = np.tile(np.arange(42, dtype=np.uint8) * 6, (42, 1))


@dataclass(frozen=True)
class Stack:
    """Everything is ready."""

    tritons: list[Triton]
    gateway: Served
    prometheus: Prometheus


@contextmanager
def running_stack(directory: Path) -> Iterator[Stack]:
    """Up in the order in which Compose starts it, each when the one before is healthy; down in the opposite one.

    Raises:
        NotAvailable: there is no Triton here.
    """
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    repository = directory / "models"
    wrap(ROOT / "model_repository" / MODEL, repository)
    with ExitStack() as stack:
        tritons = [Triton(repository, (), _flags(services["triton"])) for _ in range(2)]
        for triton in tritons:
            triton.launch()
            stack.callback(_end, triton)
        for triton in tritons:
            triton.wait_until_ready()
        gateway = stack.enter_context(running(directory, *_settings(services["gateway"], tritons)))
        health = run_stn("health", "--http-port", gateway.http.rpartition(":")[2])
        assert health.returncode == 0, health.stderr
        jobs = {"stn-serve": [gateway.metrics], "triton": [triton.metrics for triton in tritons]}
        prometheus = stack.enter_context(running_prometheus(directory / "prometheus", jobs))
        yield Stack(tritons, gateway, prometheus)


def _flags(service: dict[str, Any]) -> list[str]:
    """Of `tritonserver`, apart from where its models are."""
    program, *flags = service["command"]
    assert program == "tritonserver"
    return [flag for flag in flags if not flag.startswith("--model-repository")]


def _settings(service: dict[str, Any], tritons: list[Triton]) -> Iterator[str]:
    """Of the gateway, as flags, with the addresses of here."""
    for name, value in service["environment"].items():
        yield "--" + name.removeprefix("STN_SERVE_").lower().replace("_", "-")
        yield ",".join(triton.grpc for triton in tritons) if name == "STN_SERVE_TRITON_URL" else value


def _end(triton: Triton) -> None:
    code = triton.stop()
    assert code == 0, triton.log.read_text()


def ask(gateway: Served, count: int) -> int:
    """Send images, half of them over gRPC and half over HTTP; returns how many were answered."""
    answered = 0
    for address in (gateway.grpc, f"http://{gateway.http}"):
        with Client(address, retries=0) as client:
            outcomes = client.predict_many([IMAGE] * (count // 2), model=MODEL)
        answered += sum(not isinstance(outcome, Exception) for outcome in outcomes)
    return answered


def main() -> None:
    """Up, asked, and down."""
    with tempfile.TemporaryDirectory() as directory, running_stack(Path(directory)) as stack:
        answered = ask(stack.gateway, 200)
        print(f"200 sent, {answered} answered")  # noqa: T201 - a script
        wait_until(lambda: stack.prometheus.query(f'nv_inference_count{{job="stn-serve"}} == {answered}'), 30)
        for query in ('nv_inference_count{job="stn-serve"}', "stn_triton_answered_total"):
            for series in stack.prometheus.query(query):
                labels = series["metric"]
                print(f"{query} {labels.get('replica', labels['instance'])}: {series['value'][1]}")  # noqa: T201
    print("taken down, everything with exit code 0")  # noqa: T201


if __name__ == "__main__":
    main()
