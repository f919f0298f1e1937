"""What becomes of a request, whatever its Triton does: with Tritons that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from stn_serve.errors import DeadlineExceeded, InvalidRequest, ModelFailure, ServingError, Unavailable
from stn_serve.gateway_dispatch import RETRIES_PER_ANSWER, Dispatcher, RetryBudget
from stn_serve.gateway_models import signature_of
from stn_serve.gateway_replica import Replica
from stn_serve.gateway_scheduler import GatewayScheduler
from stn_serve.statistics import Statistics

CONFIG = """name: "echo" max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }] output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]"""

Failure = tuple[grpc.StatusCode, str]
STOPPING: Failure = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'echo' has no available versions")
BROKEN_OFF: Failure = (grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)")
FULL: Failure = (grpc.StatusCode.UNAVAILABLE, "[request id: 7] Exceeds maximum queue size")


class Scripted(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """Serves `echo`, and answers as it is told; `free` holds it."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.change: dict[str, Any] = {}
        self.asked = 0
        self.remaining_s: list[float] = []
        self.free = asyncio.Event()
        self.free.set()

    async def RepositoryIndex(self, _: object, __: object) -> object:
        index = service_pb2.RepositoryIndexResponse()
        index.models.add(name="echo", version="1", state="READY")
        return index

    async def ModelConfig(self, _: object, __: object) -> object:
        return service_pb2.ModelConfigResponse(config=text_format.Parse(CONFIG, ModelConfig()))

    async def ModelInfer(self, request: Any, context: Any) -> object:
        if not request.model_name:
            await context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: '' is not found")
        self.asked += 1
        self.remaining_s.append(context.time_remaining())
        await self.free.wait()
        if self.failure:
            await context.abort(*self.failure)
        response = service_pb2.ModelInferResponse(model_name="echo", model_version="1")
        output = {"name": "y", "datatype": "FP32", "shape": request.inputs[0].shape} | self.change
        response.outputs.add(**output)
        response.raw_output_contents.append(request.raw_input_contents[0])
        return response


class Bench:
    """Scripted Tritons, and the scheduler of their model."""

    def __init__(self, tritons: list[Scripted], replicas: Sequence[Replica], max_in_flight: int) -> None:
        self.tritons = tritons
        self.replicas = replicas
        self.dispatcher = Dispatcher(max_in_flight, len(replicas))
        model = signature_of(text_format.Parse(CONFIG, ModelConfig()), 1)
        self.scheduler = GatewayScheduler(model, self.dispatcher, Statistics(), timeout_s=10)
        self.scheduler.replicas = replicas

    async def ask(self) -> float:
        answer = await self.scheduler.infer({"x": np.full((1, 1), 3, np.float32)}, ["y"], 1)
        return float(answer.outputs["y"][0, 0])


@asynccontextmanager
async def bench(count: int, max_in_flight: int = 100) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        tritons, replicas = [Scripted() for _ in range(count)], []
        for triton in tritons:
            server = grpc.aio.server()
            add_GRPCInferenceServiceServicer_to_server(triton, server)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            stack.push_async_callback(server.stop, None)
            replica = Replica(address, grpc.aio.insecure_channel(address))
            await replica.look()
            stack.push_async_callback(replica.close)
            replicas.append(replica)
        yield Bench(tritons, replicas, max_in_flight)


def test_each_is_asked_in_its_turn_and_a_busy_one_less() -> None:
    async def scenario() -> None:
        async with bench(3) as on:
            for _ in range(9):
                assert await on.ask() == 3
            assert [triton.asked for triton in on.tritons] == [3, 3, 3]
            on.tritons[0].free.clear()
            held = [asyncio.ensure_future(on.ask()) for _ in range(3)]
            while on.tritons[0].asked != 4:
                await asyncio.sleep(0.01)
            for _ in range(6):
                await on.ask()
            assert on.tritons[0].asked == 4
            on.tritons[0].free.set()
            assert await asyncio.gather(*held) == [3, 3, 3]

    asyncio.run(scenario())


@pytest.mark.parametrize("failure", [STOPPING, BROKEN_OFF, (grpc.StatusCode.CANCELLED, "")])
def test_what_one_loses_another_answers(failure: Failure) -> None:
    async def scenario() -> None:
        async with bench(2) as on:
            on.tritons[0].failure = failure
            for _ in range(10):
                assert await on.ask() == 3
            assert on.dispatcher.retries == on.replicas[0].lost >= 1
            assert on.replicas[1].answered == 10

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (FULL, Unavailable),
        ((grpc.StatusCode.UNAVAILABLE, "Request timeout expired"), Unavailable),
        ((grpc.StatusCode.INTERNAL, "division by zero"), ModelFailure),
        ((grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape"), InvalidRequest),
        ((grpc.StatusCode.UNKNOWN, "something"), ServingError),
    ],
)
def test_what_triton_has_answered_is_passed_on_and_not_asked_again(failure: Failure, error: type[ServingError]) -> None:
    async def scenario() -> None:
        async with bench(2) as on:
            for triton in on.tritons:
                triton.failure = failure
            with pytest.raises(error) as raised:
                await on.ask()
            assert str(raised.value) == failure[1]
            assert sum(triton.asked for triton in on.tritons) == 1

    asyncio.run(scenario())


def test_what_all_lose_is_given_up_after_three_attempts() -> None:
    async def scenario() -> None:
        async with bench(4) as on:
            for triton in on.tritons:
                triton.failure = BROKEN_OFF
            with pytest.raises(Unavailable, match="Triton has lost the request 3 times: Stream removed"):
                await on.ask()
            assert sorted(triton.asked for triton in on.tritons) == [0, 1, 1, 1]

    asyncio.run(scenario())


def test_a_deadline_ends_the_waiting_and_the_asking() -> None:
    async def scenario() -> None:
        async with bench(2) as on:
            for triton in on.tritons:
                triton.free.clear()
            on.scheduler = GatewayScheduler(on.scheduler._model, on.dispatcher, Statistics(), timeout_s=1)
            on.scheduler.replicas = on.replicas
            with pytest.raises(DeadlineExceeded, match=r"no answer from Triton within [01](\.\d+)? s"):
                await on.ask()
            assert sum(triton.asked for triton in on.tritons) <= 1
            assert all(remaining_s < 2 for triton in on.tritons for remaining_s in triton.remaining_s)

    asyncio.run(scenario())


def test_more_than_the_limit_is_refused_at_once_but_never_what_was_accepted() -> None:
    async def scenario() -> None:
        async with bench(2, max_in_flight=2) as on:
            for triton in on.tritons:
                triton.free.clear()
            accepted = [asyncio.ensure_future(on.ask()) for _ in range(4)]
            while sum(triton.asked for triton in on.tritons) < 4:
                await asyncio.sleep(0.01)
            assert on.scheduler.pending_count == 4
            with pytest.raises(Unavailable, match="2 requests are with each Triton"):
                await on.ask()
            with pytest.raises(Unavailable, match="2 requests are with each Triton"):
                on.scheduler.check_room()
            on.tritons[0].failure = BROKEN_OFF
            for triton in on.tritons:
                triton.free.set()
            assert await asyncio.gather(*accepted) == [3] * 4
            assert on.scheduler.pending_count == 0
            assert on.dispatcher.retries == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "z"}, "Triton's answer lacks output 'y'"),
        ({"shape": [1, 1, 1]}, r"output 'y' of Triton's answer has shape \[1, 1, 1\] for 1 rows, expected \[-1, 1\]"),
        ({"shape": [7, 1]}, "output 'y' of the answer cannot be read"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_of_the_model(change: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with bench(1) as on:
            on.tritons[0].change = change
            with pytest.raises(ServingError, match=message):
                await on.ask()

    asyncio.run(scenario())


@given(st.integers(1, 50), st.lists(st.booleans(), max_size=300))
def test_retries_are_never_more_than_the_budget_and_a_share_of_the_answers(limit: int, answers: list[bool]) -> None:
    budget = RetryBudget(limit)
    spent = earned = 0
    for answered in answers:
        if answered:
            budget.earn()
            earned += 1
        else:
            spent += budget.spend()
        assert spent <= limit + RETRIES_PER_ANSWER * earned + 1e-6
