from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from served import Served

from stn_serve import AsyncClient, Client, batches
from stn_serve.errors import DeadlineExceeded, InvalidRequest, NotFound, Unavailable

WHITE, BLACK = np.full((20, 40), 255, np.uint8), np.zeros((20, 40), np.uint8)

Use = Callable[[AsyncClient], Awaitable[Any]]


@pytest.fixture(params=["grpc", "http"])
def address(request: pytest.FixtureRequest, server: Served) -> str:
    return server.grpc if request.param == "grpc" else f"http://{server.http}"


def use(address: str, use: Use, **options: Any) -> Any:
    """What a coroutine makes of a client."""

    async def run() -> Any:
        async with AsyncClient(address, **options) as stn:
            return await use(stn)

    return asyncio.run(run())


def test_both_clients_answer_alike(address: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (31, 17, 3), np.uint8)
    answer = use(address, lambda stn: stn.predict(image, model="vision", top_k=3, crops=True, crop_side=20))
    with Client(address) as stn:
        expected = stn.predict(image, model="vision", top_k=3, crops=True, crop_side=20)
    assert (answer.labels, answer.probabilities) == (expected.labels, expected.probabilities)
    assert answer.image_size == expected.image_size == (31, 17)
    [transform], [twin] = answer.transforms, expected.transforms
    np.testing.assert_array_equal(transform.quad, twin.quad)
    assert transform.crop.size == (20, 20)
    np.testing.assert_array_equal(np.asarray(transform.crop), np.asarray(twin.crop))


def test_many_images_keep_their_order(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LARGEST_BATCH", 3)
    images = [WHITE if number % 3 else BLACK for number in range(40)] + [b"a bad one"]
    *outcomes, last = use(address, lambda stn: stn.predict_many(images, model="vision"))
    assert [outcome.label for outcome in outcomes] == ["bright" if number % 3 else "dark" for number in range(40)]
    assert isinstance(last, InvalidRequest)


def test_long_lists_are_read_as_they_are_answered(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LARGEST_BATCH", 2)
    images = iter([WHITE] * 1000)

    async def first(stn: AsyncClient) -> Any:
        outcomes = stn.predict_iter(images, model="vision")
        outcome = await anext(outcomes)
        await outcomes.aclose()  # type: ignore[attr-defined]  # it is a generator
        return outcome

    assert use(address, first, concurrency=3).label == "bright"
    assert len(list(images)) > 980


def test_calls_run_together(address: str) -> None:
    async def many(stn: AsyncClient) -> Any:
        return await asyncio.gather(*(stn.predict(image, model="vision") for image in [WHITE, BLACK] * 20))

    assert [prediction.label for prediction in use(address, many)] == ["bright", "dark"] * 20


def test_tensors(address: str) -> None:
    image = np.arange(784, dtype=np.float32).reshape(1, 1, 28, 28)
    outputs = use(address, lambda stn: stn.infer("ident", {"image": image}))
    np.testing.assert_array_equal(outputs["logits"], [np.arange(10)])


def test_errors_are_those_of_the_other_client(address: str) -> None:
    with pytest.raises(NotFound, match="nope"):
        use(address, lambda stn: stn.predict(WHITE, model="nope"))
    with pytest.raises(InvalidRequest, match="expected an image"):
        use(address, lambda stn: stn.predict(b"text", model="vision"))


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_nobody_there(scheme: str) -> None:
    with pytest.raises(Unavailable, match=r"no server answers at .*127.0.0.1:1"):
        use(f"{scheme}127.0.0.1:1", lambda stn: stn.predict(WHITE), retries=1)


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_silence(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeadlineExceeded, match=rf"no answer from {address} within 0\.\d+ s"):
            use(address, lambda stn: stn.predict(WHITE, timeout_s=0.1))


def test_a_call_can_be_cancelled(address: str) -> None:
    async def cancel(stn: AsyncClient) -> Any:
        call = asyncio.create_task(stn.predict_many([WHITE] * 200, model="vision"))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return await stn.predict(BLACK, model="vision")

    assert use(address, cancel).label == "dark"
