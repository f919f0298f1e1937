"""The asyncio twin of the client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

from numpy.typing import ArrayLike, NDArray

from stn_serve.addresses import Address, ConnectionOptions
from stn_serve.batches import Batch, Outcome, PredictOptions, batches, single
from stn_serve.client import DEFAULT_ADDRESS
from stn_serve.errors import ServingError, Unavailable
from stn_serve.image_sources import ImageSource
from stn_serve.prediction import Prediction
from stn_serve.retries import Attempts
from stn_serve.transports import connect_async

Answer = TypeVar("Answer")


class AsyncClient:
    """As `Client`, for one event loop; make it where the loop runs.

        async with AsyncClient("localhost:8001") as client:
            prediction = await client.predict("digit.png")
            async for outcome in client.predict_iter(paths):
                ...

    A call that is cancelled leaves the server's queue.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        concurrency: int = 4,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        self._transport = connect_async(Address.parse(address, **connection))
        self._timeout_s = timeout_s
        self._retries = retries
        self._concurrency = concurrency

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connections."""
        await self._transport.close()

    async def predict(
        self, image: ImageSource, *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> Prediction:
        """See `Client.predict`."""
        [batch] = await asyncio.to_thread(list, batches([image], options))
        return single(await self._answer(batch, timeout_s))

    async def predict_many(
        self, images: Iterable[ImageSource], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> list[Outcome]:
        """See `Client.predict_many`."""
        return [outcome async for outcome in self.predict_iter(images, timeout_s=timeout_s, **options)]

    async def predict_iter(
        self, images: Iterable[ImageSource], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> AsyncIterator[Outcome]:
        """See `Client.predict_iter`; images are read and encoded in a thread."""
        in_flight: deque[asyncio.Task[list[Outcome]]] = deque()
        groups = batches(images, options)
        try:
            while batch := await asyncio.to_thread(next, groups, None):
                in_flight.append(asyncio.create_task(self._answer(batch, timeout_s)))
                if len(in_flight) == self._concurrency:
                    for outcome in await in_flight.popleft():
                        yield outcome
            while in_flight:
                for outcome in await in_flight.popleft():
                    yield outcome
        finally:
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """See `Client.infer`."""
        from stn_serve import tensor_messages  # takes 0.4 s, and few callers need it

        request = tensor_messages.infer_request(model, version, inputs, outputs)
        return tensor_messages.arrays(
            await self._ask(lambda remaining_s: self._transport.infer(request, remaining_s), timeout_s)
        )

    async def _answer(self, batch: Batch, timeout_s: float | None) -> list[Outcome]:
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                if part.images:
                    await self._ask(lambda remaining_s: self._send(part, remaining_s), timeout_s)  # noqa: B023 - called here
            except ServingError as error:
                parts += part.recover(error)
        return batch.answers()

    async def _send(self, batch: Batch, timeout_s: float) -> None:
        batch.take(await self._transport.predict(batch.request(), timeout_s))

    async def _ask(self, send: Callable[[float], Awaitable[Answer]], timeout_s: float | None) -> Answer:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return await send(attempts.remaining_s)
            except Unavailable as error:
                await asyncio.sleep(attempts.pause_s(error))
