"""Tritons that are killed, stopped and hung under load, behind a gateway: nothing that was accepted is lost."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from gateway_tritons import (
    Load,
    index,
    is_ready,
    picture,
    running_gateway,
    running_tritons,
    scrape,
    wait_until,
)
from onnx_models import publish_vision
from python_backend import wrap
from served import Served, stop

from benchmarks.real_triton import Triton
from stn_serve.client import Client
from stn_serve.errors import Unavailable

BATCH = 'parameters { key: "delay_s" value { string_value: "0.02" } }'
"""Each batch takes a while, so that there is always something in flight."""


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Triton]]:
    shims = tmp_path_factory.mktemp("tritons") / "repository"
    wrap(publish_vision(tmp_path_factory.mktemp("ours")), shims, BATCH)
    with running_tritons(*[(shims, ("vision",))] * 2) as tritons:
        yield tritons


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tritons: list[Triton]) -> Iterator[Served]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), tritons) as served:
        yield served


def is_up(gateway: Served, triton: Triton) -> bool:
    return scrape(gateway)[f"stn_triton_up {triton.grpc}"] == 1


def check_books(gateway: Served, load: Load, before: dict[str, float]) -> Counter[str]:
    """Callers, gateway and Tritons must agree to the request; returns what happened between the latter two."""
    change = Counter({name: int(value - before.get(name, 0)) for name, value in scrape(gateway).items()})
    between = Counter[str]()
    for name, count in change.items():
        if " " in name and name.startswith("stn_triton"):
            between[name.split()[0].removeprefix("stn_triton_").removesuffix("_total")] += count
    assert load.failures == {}, f"{load.failures.total()} of {load.sent} requests were lost"
    assert change["nv_inference_request_success"] == load.answered == load.sent
    assert between["answered"] == load.answered
    assert between["sent"] == between["answered"] + between["lost"]
    assert between["lost"] == change["stn_triton_retries_total"]
    return between


def test_one_that_is_killed_under_load_costs_nobody_an_answer(gateway: Served, tritons: list[Triton]) -> None:
    before = scrape(gateway)
    load = Load(gateway.grpc)
    with load.running():
        load.wait_for(50)
        tritons[0].kill()
        load.wait_for(50)
        assert not is_up(gateway, tritons[0])
        tritons[0].start()
        wait_until(lambda: is_up(gateway, tritons[0]))
        answered = f"stn_triton_answered_total {tritons[0].grpc}"
        returned = scrape(gateway)[answered]
        wait_until(lambda: scrape(gateway)[answered] > returned)
    between = check_books(gateway, load, before)
    assert between["lost"] > 0, "nothing was in flight: the kill has shown nothing"
    assert between["ejections"] == 1


def test_one_that_is_stopped_under_load_finishes_and_gets_no_more(gateway: Served, tritons: list[Triton]) -> None:
    before = scrape(gateway)
    load = Load(gateway.grpc)
    with load.running():
        load.wait_for(50)
        assert tritons[1].stop() == 0
        load.wait_for(50)
        tritons[1].start()
        wait_until(lambda: is_up(gateway, tritons[1]))
    check_books(gateway, load, before)


def test_one_that_hangs_is_given_up_and_its_requests_are_asked_elsewhere(
    gateway: Served, tritons: list[Triton]
) -> None:
    before = scrape(gateway)
    load = Load(gateway.grpc)
    with load.running():
        load.wait_for(20)
        tritons[0].process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not is_up(gateway, tritons[0]))
        load.wait_for(50)
        tritons[0].process.send_signal(signal.SIGCONT)
        wait_until(lambda: is_up(gateway, tritons[0]))
    between = check_books(gateway, load, before)
    assert between["lost"] > 0


def test_without_any_it_is_not_ready_says_so_and_comes_back(gateway: Served, tritons: list[Triton]) -> None:
    for triton in tritons:
        triton.kill()
    wait_until(lambda: not is_ready(gateway))
    assert not is_ready(gateway, "/v2/models/vision/ready")
    (entry,) = index(gateway)
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "no Triton that serves it answers")
    with Client(gateway.grpc, retries=0) as client, pytest.raises(Unavailable, match="no Triton that serves"):
        client.predict(picture())
    response = urllib3.request("POST", f"http://{gateway.http}/v1/predict", body=picture(), retries=False)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    for triton in tritons:
        triton.launch()
    for triton in tritons:
        triton.wait_until_ready()
    wait_until(lambda: all(is_up(gateway, triton) for triton in tritons))
    assert is_ready(gateway)
    with Client(gateway.grpc, retries=0) as client:
        assert client.predict(picture()).label == "bright"


def test_a_gateway_that_is_stopped_under_load_answers_what_it_has_accepted(
    tmp_path: Path, tritons: list[Triton]
) -> None:
    with running_gateway(tmp_path, tritons) as gateway:
        load = Load(gateway.grpc)
        with load.running():
            load.wait_for(50)
            assert stop(gateway)[0] == 0
    # gRPC cancels calls that reach a server while it shuts down; like those that are refused, they were not accepted.
    assert all(failure.startswith(("Unavailable: ", "Cancelled: CANCELLED")) for failure in load.failures)
