"""What can go wrong with a model's files, caused: the others serve on, and the index says why."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper
from onnx_models import IDENT_CONFIG, build, publish, publish_ident
from served import running
from tritonclient.utils import InferenceServerException

from stn_serve.loading import CHANGED
from stn_serve.registry import ModelRegistry

EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")

WARMUP = """model_warmup [{ name: "slow" batch_size: 1
  inputs { key: "image" value { data_type: TYPE_FP32 dims: [1, 28, 28] input_data_file: "row" } } }]"""


def ask_ident(client: Any, model: str = "ident") -> None:
    image = tritonclient.grpc.InferInput("image", [1, 1, 28, 28], "FP32")
    image.set_data_from_numpy(np.zeros((1, 1, 28, 28), np.float32))
    client.infer(model, [image])


def make_slow(directory: Path) -> Path:
    """Let a model take as long to load as nobody writes to this pipe: its warm-up reads from it."""
    (directory / "config.pbtxt").write_text(IDENT_CONFIG + WARMUP)
    (directory / "warmup").mkdir()
    pipe = directory / "warmup" / "row"
    os.mkfifo(pipe)
    return pipe


@contextmanager
def serving(repository: Path) -> Iterator[Any]:
    with running(repository, *EXPLICIT) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        yield client


@pytest.mark.parametrize("fault", ["replaced", "truncated", "removed"])
def test_a_file_that_changes_while_it_is_loaded_is_not_served(tmp_path: Path, fault: str) -> None:
    directory = publish_ident(tmp_path)

    async def change() -> None:
        registry = ModelRegistry.load(tmp_path, "explicit")
        before = registry.find("ident")
        pipe = make_slow(directory)
        load = asyncio.create_task(registry.reload(directory))
        with await asyncio.to_thread(pipe.open, "wb") as stream:  # waits until the session is there and warms up
            file = directory / "1" / "model.onnx"
            match fault:
                case "replaced":
                    shutil.copy(file, tmp_path / "other")
                    (tmp_path / "other").replace(file)
                case "truncated":
                    os.truncate(file, 100)
                case "removed":
                    file.unlink()
            stream.write(bytes(3136))
        loaded = await load
        assert loaded.failures == f"model 'ident' version 1: {CHANGED}"
        assert registry.find("ident") is before
        await registry.close()

    asyncio.run(change())


def test_a_model_that_takes_long_to_load_holds_up_nobody(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    publish_ident(tmp_path, "other")
    with serving(tmp_path) as client:
        pipe = make_slow(tmp_path / "ident")
        load = threading.Thread(target=client.load_model, args=("ident",))
        load.start()
        with pipe.open("wb") as stream:
            ask_ident(client)
            ask_ident(client, "other")
            client.unload_model("other")
            client.load_model("other")
            assert client.is_server_ready()
            assert client.is_model_ready("ident")
            assert load.is_alive()
            stream.write(bytes(3136))
        load.join()


def test_files_that_come_and_go_during_loads_end_neither_the_server_nor_its_answers(tmp_path: Path) -> None:
    directory = publish_ident(tmp_path)
    whole = (directory / "1" / "model.onnx").read_bytes()
    stopped = threading.Event()

    def disturb() -> None:
        turn = 0
        while not stopped.is_set():
            turn += 1
            shutil.rmtree(directory, ignore_errors=True)
            (directory / "1").mkdir(parents=True)
            (directory / "config.pbtxt").write_text(IDENT_CONFIG.replace('label_filename: "labels.txt"', ""))
            (directory / "1" / "model.onnx").write_bytes(whole[: len(whole) if turn % 2 else turn % len(whole)])
            time.sleep(0.005)

    with serving(tmp_path) as client:
        disturber = threading.Thread(target=disturb)
        disturber.start()
        messages = []
        for _ in range(20):
            try:
                client.load_model("ident")
            except InferenceServerException as error:
                messages.append(error.message())
            ask_ident(client)
        stopped.set()
        disturber.join()
    assert [
        message for message in messages if not re.match("load failed for model 'ident': |failed to load", message)
    ] == []


def test_weights_beside_the_model_may_be_written_over(tmp_path: Path) -> None:
    ones = onnx.numpy_helper.from_array(np.ones((1, 64), np.float32), "ones")
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in ("x", "y")]
    model = build([helper.make_node("Add", ["x", "ones"], ["y"])], tensors[:1], tensors[1:])
    model.graph.initializer.append(ones)
    config = """max_batch_size: 4 input [{ name: "x" data_type: TYPE_FP32 dims: [64] }]
                output [{ name: "y" data_type: TYPE_FP32 dims: [64] }]"""
    directory = publish(tmp_path, "add", model, config)
    onnx.save(
        model,
        directory / "1" / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    x = tritonclient.grpc.InferInput("x", [1, 64], "FP32")
    x.set_data_from_numpy(np.zeros((1, 64), np.float32))
    with serving(tmp_path) as client:
        os.truncate(directory / "1" / "model.onnx.data", 0)
        np.testing.assert_array_equal(client.infer("add", [x]).as_numpy("y"), np.ones((1, 64)))
        with pytest.raises(InferenceServerException, match=r"load failed for model 'add': .*cannot be loaded"):
            client.load_model("add")
        np.testing.assert_array_equal(client.infer("add", [x]).as_numpy("y"), np.ones((1, 64)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IDENT_CONFIG.replace('"image"', '"picture"'), "input 'picture' of config.pbtxt is not in the ONNX file"),
        (IDENT_CONFIG + "sequence_batching { }", "config.pbtxt cannot be read"),
        (IDENT_CONFIG.replace("dynamic_batching { }", "sequence_batching { }"), "sequence_batching is not supported"),
        (IDENT_CONFIG.replace("KIND_CPU", "KIND_CPU gpus: [0]"), "kind KIND_CPU but specifies GPUs"),
        (IDENT_CONFIG.replace("max_batch_size: 8", "max_batch_size: 0"), r"has shape \[1, 28, 28\] in config.pbtxt"),
        ("\0\1\2", "config.pbtxt cannot be read"),
        (IDENT_CONFIG.replace("labels.txt", "nope.txt"), "labels cannot be read from nope.txt"),
    ],
)
def test_a_config_that_cannot_be_served_is_one_message_and_the_others_serve(
    tmp_path: Path, config: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    publish_ident(tmp_path)
    publish_ident(tmp_path, "wrong", config)
    registry = ModelRegistry.load(tmp_path)
    assert registry.find("ident").model.name == "ident"
    assert registry.ready
    [entry] = [entry for entry in registry.index if entry.name == "wrong"]
    assert entry.served is None
    assert re.search(message, entry.reason)
    assert "\n" not in entry.reason.strip()
    assert [record.exc_info for record in caplog.records if record.levelname == "ERROR"] == [None]
