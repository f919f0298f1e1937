from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import tritonclient.grpc
from onnx_models import IDENT_CONFIG, publish_ident
from served import running

from stn_serve.polling import Poller
from stn_serve.registry import ModelRegistry

Scenario = Callable[[ModelRegistry, Poller], Awaitable[None]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_ident(tmp_path)
    return tmp_path


def follow(repository: Path, scenario: Scenario, settle_s: float = 0.02) -> None:
    async def play() -> None:
        registry = ModelRegistry.load(repository, "poll")
        await scenario(registry, Poller(registry, repository, settle_s))
        await registry.close()

    asyncio.run(play())


async def look(poller: Poller) -> None:
    await poller.look()
    await poller.finish()


def names(registry: ModelRegistry) -> list[tuple[str, int]]:
    return sorted((served.model.name, served.model.version) for served in registry)


def test_models_and_versions_come_change_and_go(repository: Path) -> None:
    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        await look(poller)
        first = registry.find("ident")
        assert names(registry) == [("ident", 1)]
        publish_ident(repository, "other")
        publish_ident(repository, version=2)
        await look(poller)
        assert names(registry) == [("ident", 2), ("other", 1)]
        (repository / "ident" / "config.pbtxt").write_text(IDENT_CONFIG + "version_policy { all { } }")
        await look(poller)
        assert names(registry) == [("ident", 1), ("ident", 2), ("other", 1)]
        assert registry.find("ident", "1") is not first
        shutil.rmtree(repository / "other")
        shutil.rmtree(repository / "ident" / "2")
        await look(poller)
        assert names(registry) == [("ident", 1)]
        assert not registry.knows("other")

    follow(repository, scenario)


def test_a_file_moved_into_place_is_noticed_whatever_time_it_carries(repository: Path) -> None:
    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        before = registry.find("ident")
        path = repository / "ident" / "1" / "model.onnx"
        shutil.copy2(path, repository / "new.onnx")
        (repository / "new.onnx").replace(path)
        await look(poller)
        assert registry.find("ident") is not before

    follow(repository, scenario)


def test_a_copy_in_progress_is_left_alone(repository: Path) -> None:
    whole = (repository / "ident" / "1" / "model.onnx").read_bytes()

    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        (repository / "ident" / "2").mkdir()
        with (repository / "ident" / "2" / "model.onnx").open("wb", buffering=0) as copy:
            copy.write(whole[:100])
            looking = asyncio.create_task(look(poller))
            await asyncio.sleep(0.2)
            copy.write(whole[100:])
            await looking
        assert [(entry.version, entry.reason) for entry in registry.index] == [(1, "")]
        await look(poller)
        assert names(registry) == [("ident", 2)]

    follow(repository, scenario, settle_s=0.5)


def test_a_copy_that_stalls_never_replaces_what_is_served(repository: Path) -> None:
    whole = (repository / "ident" / "1" / "model.onnx").read_bytes()

    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        (repository / "ident" / "2").mkdir()
        copy = repository / "ident" / "2" / "model.onnx"
        for length in range(0, len(whole), len(whole) // 8):
            copy.write_bytes(whole[:length])
            await look(poller)
            assert names(registry) == [("ident", 1)]
            assert [entry.state for entry in registry.index] == ["READY", "UNAVAILABLE"]
        copy.write_bytes(whole)
        await look(poller)
        assert names(registry) == [("ident", 2)]

    follow(repository, scenario)


def test_what_failed_is_tried_again_only_when_it_changes(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        (repository / "ident" / "config.pbtxt").write_text("nonsense")
        for _ in range(3):
            await look(poller)
        assert len([message for message in caplog.messages if "is served as it was" in message]) == 1
        (repository / "ident" / "config.pbtxt").write_text(IDENT_CONFIG)
        await look(poller)
        assert [entry.reason for entry in registry.index] == [""]

    follow(repository, scenario)


def test_a_repository_that_cannot_be_read_takes_nothing_away(repository: Path) -> None:
    async def scenario(registry: ModelRegistry, poller: Poller) -> None:
        repository.rename(repository.with_name("away"))
        await look(poller)
        assert names(registry) == [("ident", 1)]
        repository.with_name("away").rename(repository)
        await look(poller)
        assert names(registry) == [("ident", 1)]

    follow(repository, scenario)


def test_a_server_that_polls_takes_a_new_version(repository: Path) -> None:
    flags = ("--model-control-mode", "poll", "--repository-poll-secs", "0.1")
    with running(repository, *flags) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        publish_ident(repository, version=2)
        while list(client.get_model_metadata("ident").versions) != ["2"]:
            time.sleep(0.05)
