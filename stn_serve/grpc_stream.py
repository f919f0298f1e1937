"""Requests of one stream run together, and are answered in the order they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")

MAX_IN_FLIGHT = 64
"""Requests of one stream in work; the next one is read when the first of them is answered."""


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Answer]], until: asyncio.Event
) -> AsyncIterator[Answer]:
    """Answer every request until the stream ends, or `until` is set; `answer` must not raise.

    Requests in work when `until` is set are still answered. Those of a caller that goes away are cancelled.
    """
    in_flight: asyncio.Queue[asyncio.Task[Answer] | None] = asyncio.Queue()
    room = asyncio.Semaphore(MAX_IN_FLIGHT)
    reader = asyncio.ensure_future(_read(requests, answer, until, in_flight, room))
    try:
        while task := await in_flight.get():
            yield await task
            room.release()
    finally:
        reader.cancel()
        while not in_flight.empty():
            if unanswered := in_flight.get_nowait():
                unanswered.cancel()


async def _read(
    requests: AsyncIterator[Request],
    answer: Callable[[Request], Awaitable[Answer]],
    until: asyncio.Event,
    in_flight: asyncio.Queue[asyncio.Task[Answer] | None],
    room: asyncio.Semaphore,
) -> None:
    """Start an answer for each request; None is the end."""

    async def start_all() -> None:
        async for request in requests:
            in_flight.put_nowait(asyncio.ensure_future(answer(request)))
            await room.acquire()

    reading, stopping = asyncio.ensure_future(start_all()), asyncio.ensure_future(until.wait())
    try:
        ended, _ = await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.exception()  # a stream that breaks off has ended, too
    finally:
        reading.cancel()
        stopping.cancel()
    in_flight.put_nowait(None)
