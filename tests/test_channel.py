from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from stn_serve.channel import Channel
from stn_serve.errors import InvalidRequest, NotFound, ServingError, Unavailable


async def pair(handlers: dict[str, Any]) -> tuple[Channel, Channel]:
    one, other = socket.socketpair()
    return await Channel.over(one, {}), await Channel.over(other, handlers)


def test_calls_are_answered_side_by_side_and_errors_raised() -> None:
    async def check() -> None:
        gate = asyncio.Event()

        async def wait(word: str) -> str:
            await gate.wait()
            return word

        async def shout(words: list[str]) -> str:
            gate.set()
            return " ".join(words).upper()

        async def refuse(kind: str) -> None:
            raise {"missing": NotFound, "wrong": InvalidRequest}[kind](f"it is {kind}")

        here, there = await pair({"wait": wait, "shout": shout, "refuse": refuse})
        waiting = asyncio.create_task(here.call("wait", "done"))
        await asyncio.sleep(0)
        assert await here.call("shout", ["ä\n", "b"]) == "Ä\n B"
        assert await waiting == "done"
        with pytest.raises(NotFound, match="it is missing"):
            await here.call("refuse", "missing")
        with pytest.raises(ServingError, match="internal error"):
            await here.call("refuse", "surprise")
        with pytest.raises(ServingError, match="internal error"):
            await here.call("no such call")
        here.close()
        await there.closed

    asyncio.run(check())


def test_who_waits_for_a_process_that_ends_is_told() -> None:
    async def check() -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        here, there = await pair({"never": never})
        waiting = asyncio.create_task(here.call("never"))
        await asyncio.sleep(0.01)
        there.close()
        with pytest.raises(Unavailable, match="has ended"):
            await waiting
        with pytest.raises(Unavailable, match="has ended"):
            await here.call("never")

    asyncio.run(check())
