from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import ParamSpec

import pytest

from stn_serve import grpc_stream
from stn_serve.grpc_stream import answer_in_order

P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def numbers(count: int, taken: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


async def endless(first: int) -> AsyncIterator[int]:
    yield first
    await asyncio.Event().wait()


@on_a_loop
async def test_later_requests_run_while_the_first_does_and_wait_for_their_turn() -> None:
    finished: list[int] = []

    async def answer(number: int) -> int:
        await asyncio.sleep(0.02 if number == 0 else 0)
        finished.append(number)
        return number

    answers = [number async for number in answer_in_order(numbers(5, []), answer, asyncio.Event())]
    assert answers == [0, 1, 2, 3, 4]
    assert finished == [1, 2, 3, 4, 0]


@on_a_loop
async def test_a_slow_reader_holds_the_stream_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_stream, "MAX_IN_FLIGHT", 3)
    taken: list[int] = []

    async def answer(number: int) -> int:
        return number

    stream = answer_in_order(numbers(100, taken), answer, asyncio.Event())
    assert await anext(stream) == 0
    await asyncio.sleep(0.02)
    assert len(taken) <= 5
    assert [number async for number in stream] == list(range(1, 100))


@on_a_loop
async def test_a_stop_ends_the_stream_after_what_is_in_work() -> None:
    stop, release = asyncio.Event(), asyncio.Event()

    async def answer(number: int) -> int:
        stop.set()
        await release.wait()
        return number

    stream = answer_in_order(endless(7), answer, stop)
    first = asyncio.ensure_future(anext(stream))
    await stop.wait()
    await asyncio.sleep(0.01)
    release.set()
    assert await first == 7
    assert [number async for number in stream] == []


@on_a_loop
async def test_what_nobody_waits_for_is_cancelled() -> None:
    cancelled: list[int] = []

    async def answer(number: int) -> int:
        try:
            await asyncio.sleep(0 if number == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    stream = answer_in_order(numbers(4, []), answer, asyncio.Event())
    assert await anext(stream) == 0
    await asyncio.sleep(0.01)
    await stream.aclose()  # type: ignore[attr-defined]  # a generator
    await asyncio.sleep(0.01)
    assert cancelled == [1, 2, 3]
    assert len(asyncio.all_tasks()) == 1
