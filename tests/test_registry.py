from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx_models import IDENT_CONFIG, publish_ident, publish_slow

from stn_serve.errors import ConfigurationError, InvalidRequest, ModelFailure, NotFound
from stn_serve.model import Model
from stn_serve.registry import ModelRegistry
from stn_serve.served_model import ServedModel
from stn_serve.validation import InferRequest, WireTensor

ALL_VERSIONS = IDENT_CONFIG + "version_policy { all { } }"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish_ident(tmp_path)
    return tmp_path


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """What is freed inside is freed by itself: nobody knows when the collector comes along."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ident_request(size: int = 3136) -> InferRequest:
    image = WireTensor("image", "FP32", (1, 1, 28, 28), bytes(size))
    return InferRequest(model_name="ident", inputs=[image])


def slow_request() -> InferRequest:
    return InferRequest(model_name="slow", inputs=[WireTensor("x", "FP32", (1,), bytes(4))])


async def calm(registry: ModelRegistry) -> None:
    while registry.busy:
        await asyncio.sleep(0.01)


def states(registry: ModelRegistry) -> list[tuple[int | None, str]]:
    return [(entry.version, entry.state) for entry in registry.index]


def versions(registry: ModelRegistry) -> list[int]:
    return [served.model.version for served in registry.find_all("ident")]


async def infer(served: ServedModel, tensors: InferRequest) -> None:
    with served.request() as request:
        await request.infer(tensors)


def native_threads() -> int:
    """Those of ONNX Runtime: a busy machine may need one more of Python's."""
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


def test_a_replaced_version_is_freed_with_its_threads(repository: Path) -> None:
    async def replace() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        registry = ModelRegistry.load(repository, "explicit")
        await infer(registry.find("ident"), ident_request())
        await registry.look()
        await registry.load_model("ident")  # as it is: what loads has its thread now
        threads = native_threads()
        old = registry.find("ident")
        with pytest.raises(InvalidRequest):
            await infer(old, ident_request(size=8))
        with pytest.raises(ModelFailure):
            await old.batcher.infer({"image": np.zeros((1, 1, 28, 27), np.float32)}, ["logits"], 1)
        assert isinstance(old.model, Model)
        session, batcher = weakref.ref(old.model.session), weakref.ref(old.batcher)
        del old
        publish_ident(repository, version=2)
        await registry.load_model("ident")
        await calm(registry)
        await infer(registry.find("ident"), ident_request())
        async with asyncio.timeout(10):  # a worker thread of the load may hold its arguments for a moment longer
            while session() or batcher() or native_threads() > threads:
                await asyncio.sleep(0.01)
        await registry.close()

    with without_garbage_collection():
        asyncio.run(replace())


def test_what_a_request_has_found_stays_whole_until_it_is_answered(repository: Path) -> None:
    async def outlive() -> None:
        registry = ModelRegistry.load(repository, "explicit")
        served = registry.find("ident")
        with served.users:
            await registry.unload_model("ident")
            await asyncio.sleep(0.05)
            with pytest.raises(NotFound, match="no available versions"):
                registry.find("ident")
            await infer(served, ident_request())
        await registry.close()

    asyncio.run(outlive())


def test_a_broken_version_leaves_the_old_one_serving_and_says_why(repository: Path) -> None:
    async def break_and_mend() -> None:
        registry = ModelRegistry.load(repository, "explicit")
        (repository / "ident" / "2").mkdir()
        (repository / "ident" / "2" / "model.onnx").write_bytes(b"broken")
        with pytest.raises(InvalidRequest, match=r"load failed for model 'ident': .*model.onnx cannot be loaded"):
            await registry.load_model("ident")
        assert states(registry) == [(1, "READY"), (2, "UNAVAILABLE")]
        assert "model.onnx cannot be loaded" in registry.index[1].reason
        assert registry.ready
        shutil.rmtree(repository / "ident" / "2")
        publish_ident(repository / "staged", version=2)
        shutil.move(repository / "staged" / "ident" / "2", repository / "ident" / "2")
        await registry.load_model("ident")
        assert states(registry) == [(2, "READY")]
        await registry.close()

    asyncio.run(break_and_mend())


def test_a_version_replaced_by_a_broken_one_is_served_as_it_was(repository: Path) -> None:
    async def break_it() -> None:
        registry = ModelRegistry.load(repository, "explicit")
        served = registry.find("ident")
        (repository / "ident" / "1" / "model.onnx").write_bytes(b"broken")
        with pytest.raises(InvalidRequest, match="cannot be loaded"):
            await registry.load_model("ident")
        (repository / "ident" / "config.pbtxt").write_text("nonsense")
        with pytest.raises(InvalidRequest, match="cannot be read"):
            await registry.load_model("ident")
        assert registry.find("ident") is served
        assert states(registry) == [(1, "READY")]
        assert "config.pbtxt cannot be read" in registry.index[0].reason
        await infer(served, ident_request())
        await registry.close()

    asyncio.run(break_it())


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("version_policy { all { } }", [1, 2, 3]),
        ("version_policy { specific { versions: [1, 3] } }", [1, 3]),
    ],
)
def test_a_reload_follows_the_policy_and_keeps_what_has_not_changed(
    tmp_path: Path, policy: str, expected: list[int]
) -> None:
    config = IDENT_CONFIG + policy
    publish_ident(tmp_path, config=config)
    publish_ident(tmp_path, config=config, version=2)

    async def add() -> None:
        registry = ModelRegistry.load(tmp_path, "explicit")
        kept = {served.model.version: served for served in registry}
        (tmp_path / "ident" / "3").mkdir()
        shutil.copy(tmp_path / "ident" / "1" / "model.onnx", tmp_path / "ident" / "3")
        await registry.load_model("ident")
        assert versions(registry) == expected
        assert all(served is kept.get(served.model.version, served) for served in registry)
        (tmp_path / "ident" / "labels.txt").write_text("\n".join("abcdefghij"))
        await registry.load_model("ident")
        assert not any(served is kept.get(served.model.version) for served in registry)
        await registry.close()

    asyncio.run(add())


def test_a_removed_version_is_served_no_more(tmp_path: Path) -> None:
    publish_ident(tmp_path, config=ALL_VERSIONS)
    publish_ident(tmp_path, config=ALL_VERSIONS, version=2)

    async def remove() -> None:
        registry = ModelRegistry.load(tmp_path, "explicit")
        shutil.rmtree(tmp_path / "ident" / "1")
        await registry.load_model("ident")
        assert versions(registry) == [2]
        await registry.close()

    asyncio.run(remove())


def test_a_load_whose_caller_goes_away_is_finished(repository: Path) -> None:
    async def leave() -> None:
        registry = ModelRegistry.load(repository, "explicit")
        publish_ident(repository, version=2)
        load = asyncio.create_task(registry.load_model("ident"))
        while not registry.busy:
            await asyncio.sleep(0.001)
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        await calm(registry)
        assert versions(registry) == [2]
        await registry.close()

    asyncio.run(leave())


def test_a_model_that_runs_long_holds_up_neither_loads_nor_other_models(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=400)
    publish_ident(tmp_path)

    async def load_beside() -> None:
        registry = ModelRegistry.load(tmp_path, "explicit")

        async def ask() -> None:
            served = registry.find("slow")
            with served.users:
                await infer(served, slow_request())

        asked = asyncio.create_task(ask())
        await asyncio.sleep(0)
        await registry.unload_model("slow")
        await registry.load_model("ident")
        await infer(registry.find("ident"), ident_request())
        assert not asked.done()
        await asked
        await registry.close()

    asyncio.run(load_beside())


def test_names_that_are_to_be_loaded_must_be_there(repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="the repository has no model 'nope', but ident"):
        ModelRegistry.load(repository, "explicit", ["nope"])


def test_only_a_server_whose_models_may_come_starts_without_any(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no model"):
        ModelRegistry.load(tmp_path)
    for mode in ("poll", "explicit"):
        assert ModelRegistry.load(tmp_path, mode).ready
    (tmp_path / "broken").mkdir()
    with pytest.raises(ConfigurationError, match=r"can be served: model 'broken' has no config.pbtxt"):
        ModelRegistry.load(tmp_path)
    assert not ModelRegistry.load(tmp_path, "poll").ready
