"""Callers and models that misbehave, at a really started server: everybody else is answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import orjson
import pytest
from h2_peer import Peer, message
from onnx_models import publish_ident, publish_trouble, publish_vision, publish_wide
from served import Served, running, start, stop
from tritonclient.grpc import service_pb2, service_pb2_grpc

from stn_serve.control import Control
from stn_serve.grpc_api import create_server
from stn_serve.inference import Inference
from stn_serve.listening import address, bind
from stn_serve.log_settings import LogSettings
from stn_serve.registry import ModelRegistry
from stn_serve.shared_memory import SharedMemory
from stn_serve.vision import ImagePrediction

FOR_EVER = 10**12
"""Laps."""
OUT_OF_BOUNDS = 9
PATIENCE_S = 30
IMAGE = [{"name": "image", "datatype": "FP32", "shape": [1, 1, 28, 28], "data": [1.0] * 784}]


class Caller:
    """Asks the model `trouble` over both transports."""

    def __init__(self, served: Served, channel: grpc.aio.Channel, http: httpx.AsyncClient) -> None:
        self.served = served
        self.http = http
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)

    def call(
        self, index: int = 0, laps: int = 0, rows: int = 1, timeout_s: float = PATIENCE_S, **parameters: int
    ) -> Any:
        """A gRPC call that is under way."""
        request = request_of("trouble", laps, index, rows)
        for name, number in parameters.items():
            request.parameters[name].int64_param = number
        return self.stub.ModelInfer(request, timeout=timeout_s)

    async def square(self, *asked: Any, **parameters: Any) -> Any:
        """The square of an index, or the code and the message of a refusal."""
        try:
            response = await self.call(*asked, **parameters)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
        return int(np.frombuffer(response.raw_output_contents[0], np.int64)[0])

    async def post(self, index: int = 0) -> httpx.Response:
        """The same over HTTP."""
        return await self.http.post("/v2/models/trouble/infer", content=body(index))

    async def post_square(self, index: int) -> int:
        return int((await self.post(index)).json()["outputs"][0]["data"][0])

    async def post_and_hang_up(self, index: int, when: asyncio.Event) -> None:
        """Ask over HTTP, and close the connection before the answer."""
        host, port = self.served.http.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        content = body(index)
        head = f"POST /v2/models/trouble/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await when.wait()
        writer.close()

    async def until_waiting(self, count: int) -> None:
        """Wait until so many requests are in the queue."""
        line = f'nv_inference_pending_request_count{{model="trouble",version="1"}} {count}\n'
        while line not in await self.metrics():
            await asyncio.sleep(0.01)

    async def metrics(self) -> str:
        return (await self.http.get(f"http://{self.served.metrics}/metrics")).text

    async def failures(self) -> dict[str, int]:
        """By reason."""
        found = re.findall(
            r'^nv_inference_request_failure{.*reason="(\w+)".*} (\d+)$', await self.metrics(), re.MULTILINE
        )
        return {reason: int(count) for reason, count in found}


def request_of(model: str, laps: int = 0, index: int = 0, rows: int = 1) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, value in {"laps": laps, "index": index}.items():
        request.inputs.add(name=name, datatype="INT64", shape=[rows, 1])
        request.raw_input_contents.append(np.full(rows, value, np.int64).tobytes())
    return request


def body(index: int) -> bytes:
    values = {"laps": 0, "index": index}
    inputs = [{"name": name, "datatype": "INT64", "shape": [1, 1], "data": [v]} for name, v in values.items()]
    return orjson.dumps({"inputs": inputs})


async def begin_to_ask(served: Served, model: str, timeout_s: float = PATIENCE_S) -> tuple[str, str]:
    """Code and message of the answer to a request of a megabyte of which only the beginning is sent."""
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[bytes(2**20)])
    peer = await Peer.connect(int(served.grpc.rpartition(":")[2]))
    timeout = ("grpc-timeout", f"{round(timeout_s * 1e3)}m")
    stream = peer.begin("ModelInfer", timeout, service="inference.GRPCInferenceService")
    await peer.send(stream, message(request.SerializeToString())[:1000], end=False)
    headers, _, _ = await peer.answer(stream)
    await peer.close()
    return headers["grpc-status"], headers["grpc-message"]


@contextlib.asynccontextmanager
async def calling(served: Served) -> AsyncIterator[Caller]:
    async with (
        grpc.aio.insecure_channel(served.grpc) as channel,
        httpx.AsyncClient(base_url=f"http://{served.http}", timeout=PATIENCE_S) as http,
    ):
        yield Caller(served, channel, http)


def start_task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def test_whoever_cancels_expires_hangs_up_or_sends_garbage_costs_no_neighbour_its_answer(tmp_path: Path) -> None:
    """They all wait for a batch of eight rows to be complete."""
    publish_trouble(
        tmp_path,
        batching="""max_queue_delay_microseconds: 60000000
                    default_queue_policy { allow_timeout_override: true }""",
    )

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            gone = asyncio.Event()
            neighbours = [start_task(caller.square(index)) for index in (1, 2, 3)]
            over_http = start_task(caller.post_square(4))
            garbage = start_task(caller.square(OUT_OF_BOUNDS))
            hung_up = start_task(caller.post_and_hang_up(5, gone))
            cancelled = caller.call(6)
            await caller.until_waiting(7)
            cancelled.cancel()
            gone.set()
            await caller.until_waiting(5)
            late = start_task(caller.square(5, timeout_s=0.5))
            expired = start_task(caller.square(5, timeout=1000))
            assert await expired == ("UNAVAILABLE", "Request timeout expired in the queue of model 'trouble'")
            assert (await late)[0] == "DEADLINE_EXCEEDED"
            await caller.until_waiting(5)
            assert await caller.square(7, rows=3) == 49
            assert await asyncio.gather(*neighbours, over_http) == [1, 4, 9, 16]
            assert (await garbage)[0] == "INTERNAL"
            assert "out of data bounds" in (await garbage)[1]
            await hung_up
            assert 'nv_inference_request_success{model="trouble",version="1"} 5\n' in await caller.metrics()
            assert await caller.failures() == {"REJECTED": 1, "CANCELED": 3, "BACKEND": 1, "OTHER": 0}

    with running(tmp_path) as served:
        run(scenario(served))


def test_a_full_queue_refuses_at_once_and_keeps_whom_it_has(tmp_path: Path) -> None:
    publish_trouble(
        tmp_path, batching="max_queue_delay_microseconds: 1000000 default_queue_policy { max_queue_size: 2 }"
    )

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            waiting = [start_task(caller.square(index)) for index in (2, 3)]
            await caller.until_waiting(2)
            refusal = await caller.square(4)
            response = await caller.post(4)
            assert refusal == ("UNAVAILABLE", "Exceeds maximum queue size of 2 for model 'trouble'")
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert response.json()["error"] == refusal[1]
            assert await asyncio.gather(*waiting) == [4, 9]

    with running(tmp_path) as served:
        run(scenario(served))


def test_a_full_queue_refuses_before_a_request_is_read(tmp_path: Path) -> None:
    publish_trouble(
        tmp_path, batching="max_queue_delay_microseconds: 2000000 default_queue_policy { max_queue_size: 1 }"
    )
    publish_ident(tmp_path)

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            waiting = start_task(caller.square(3))
            await caller.until_waiting(1)
            refusal = await begin_to_ask(served, "trouble")
            assert refusal == ("14", "Exceeds maximum queue size of 1 for model 'trouble'")
            assert (await begin_to_ask(served, "none"))[0] == "5"
            assert await waiting == 9
            assert await caller.failures() == {"REJECTED": 1, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}

    with running(tmp_path) as served:
        run(scenario(served))


def test_who_has_too_little_time_is_refused_at_once_and_before_a_request_is_read(tmp_path: Path) -> None:
    publish_trouble(tmp_path, batching="preferred_batch_size: [1]")
    publish_ident(tmp_path)

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            assert await caller.square(3, laps=10**6) == 9  # the pace is known
            hanging = caller.call(1, laps=FOR_EVER)
            await asyncio.sleep(0.1)
            behind = caller.call(2)
            await caller.until_waiting(1)
            code, text = await begin_to_ask(served, "trouble", timeout_s=0.5)
            assert (code, "deadline leaves 0" in text) == ("14", True)
            code, text = await caller.square(4, timeout_s=0.5)  # small, and whole at once
            assert (code, "deadline leaves 0" in text) == ("UNAVAILABLE", True)
            hanging.cancel()
            behind.cancel()

    with running(tmp_path) as served:
        run(scenario(served))


def test_priorities_and_queues_of_levels(tmp_path: Path) -> None:
    """A batch of four rows does not wait, and the lowest level is not in it."""
    publish_trouble(
        tmp_path,
        batching="""max_queue_delay_microseconds: 60000000 preferred_batch_size: [4]
                    priority_levels: 3 default_priority_level: 2
                    priority_queue_policy { key: 3 value { default_timeout_microseconds: 1000000 } }""",
    )

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            low = start_task(caller.square(2, priority=3))
            await caller.until_waiting(1)
            usual = start_task(caller.square(3))
            await caller.until_waiting(2)
            assert await caller.square(4, rows=3, priority=1) == 16
            assert await usual == 9
            assert await low == ("UNAVAILABLE", "Request timeout expired in the queue of model 'trouble'")

    with running(tmp_path) as served:
        run(scenario(served))


def test_a_model_that_hangs_delays_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    publish_trouble(tmp_path, batching="preferred_batch_size: [1]")
    publish_ident(tmp_path)

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            assert await caller.square(3) == 9  # connected: what is sent first comes first
            hanging = caller.call(1, laps=FOR_EVER)
            await asyncio.sleep(0.1)
            behind = start_task(caller.square(2, timeout_s=1))
            await caller.until_waiting(1)
            for _ in range(3):
                response = await caller.http.post("/v2/models/ident/infer", json={"inputs": IMAGE})
                assert response.json()["outputs"][0]["data"] == [1.0] * 10
            assert (await behind)[0] == "DEADLINE_EXCEEDED"
            hanging.cancel()

    served = start(tmp_path, "--grace-s", "1")
    try:
        run(scenario(served))
    finally:
        code, output = stop(served)
    assert code == 0, output


def test_no_work_is_spent_on_a_call_whose_time_was_up_before_its_turn(tmp_path: Path) -> None:
    publish_trouble(tmp_path)

    async def scenario() -> None:
        registry = ModelRegistry.load(tmp_path)
        images = ImagePrediction(registry)
        control = Control(registry, SharedMemory(), LogSettings())
        server = create_server(Inference(registry), control, images, 2**20)
        listener = bind("127.0.0.1", 0)
        await server.start(listener)
        with grpc.insecure_channel(address(listener)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)  # with threads of its own
            assert (await asyncio.to_thread(stub.ServerLive, service_pb2.ServerLiveRequest())).live
            late = stub.ModelInfer.future(request_of("trouble", index=2), timeout=0.2)
            time.sleep(0.5)
            with pytest.raises(grpc.RpcError):
                await asyncio.to_thread(late.result)
            await asyncio.sleep(0.1)
            statistics = registry.find("trouble").statistics
            assert (statistics.success.count, statistics.fail.count) == (0, 0)
        await server.stop(0)
        await registry.close(0)
        images.close()

    run(scenario())


def test_an_image_is_not_decoded_for_a_queue_that_is_full(tmp_path: Path) -> None:
    """Whether it is an image is found out later: the refusal comes first."""
    directory = publish_vision(tmp_path, "trouble")
    config = directory / "config.pbtxt"
    config.write_text(
        config.read_text().replace(
            "dynamic_batching { }",
            "dynamic_batching { max_queue_delay_microseconds: 60000000 default_queue_policy { max_queue_size: 1 } }",
        )
    )

    async def scenario(served: Served) -> None:
        async with calling(served) as caller:
            image = [{"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [1] * 64}]
            waiting = start_task(caller.http.post("/v2/models/trouble/infer", json={"inputs": image}))
            await caller.until_waiting(1)
            response = await caller.http.post("/v1/models/trouble/predict", content=b"no image")
            assert (response.status_code, response.headers.get("retry-after")) == (503, "1")
            waiting.cancel()

    with running(tmp_path) as served:
        run(scenario(served))


def test_who_never_reads_an_answer_delays_neither_the_others_nor_the_end(tmp_path: Path) -> None:
    publish_wide(tmp_path)
    publish_ident(tmp_path)
    inputs = [{"name": "x", "datatype": "FP32", "shape": [4, 1], "data": [1, 2, 3, 4]}]
    content = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    head = f"POST /v2/models/wide/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    served = start(tmp_path, "--grace-s", "2")
    host, port = served.http.split(":")
    deaf = [socket.create_connection((host, int(port))) for _ in range(3)]
    try:
        for connection in deaf:
            connection.sendall(head + content)
            assert connection.recv(12) == b"HTTP/1.1 200"
        response = httpx.post(f"http://{served.http}/v2/models/ident/infer", json={"inputs": IMAGE})
        assert response.json()["outputs"][0]["data"] == [1.0] * 10
    finally:
        code, output = stop(served)
        for connection in deaf:
            connection.close()
    assert code == 0, output
