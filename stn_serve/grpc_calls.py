"""One gRPC call on a stream of HTTP/2: its messages in, its handler's task, its messages and status out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar, Self

from grpc import StatusCode

from stn_serve.arrivals import Arrival
from stn_serve.budget import Budget
from stn_serve.compression import decompress
from stn_serve.errors import RequestTimeout, ServingError
from stn_serve.grpc_beginnings import BEGINNING_BYTES
from stn_serve.grpc_context import Aborted, Context
from stn_serve.grpc_head import ANSWER, IDENTITY, OK, Head, only_trailers, trailers
from stn_serve.grpc_messages import MessageReader, framed
from stn_serve.h2_stream import Stream

logger = logging.getLogger(__name__)

Handler = Any
"""A `grpc.RpcMethodHandler` of coroutines, or of generators of answers; its stub knows those of threads only."""
Message = Any
Check = Callable[[Head, bytes], Arrival | None]
"""Told of the beginning of a unary request; raises a `ServingError` if the rest need not be read."""


class Call:
    """Receives what comes on its stream; one of unary requests begins when its message is whole."""

    __slots__ = (
        "_arrival",
        "_budget",
        "_check",
        "_context",
        "_encoding",
        "_handler",
        "_has_answered",
        "_held",
        "_is_over",
        "_max_bytes",
        "_more",
        "_reader",
        "_received",
        "_rest",
        "_stream",
        "_task",
        "_timer",
    )

    PAUSE_S: ClassVar[float] = 60.0
    """How long a caller may pause in the middle of a message: what is there takes room from others."""

    def __init__(
        self,
        stream: Stream,
        head: Head,
        handler: Handler,
        max_message_bytes: int,
        budget: Budget,
        check: Check | None = None,
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._check = check and partial(check, head)
        self._arrival: Arrival | None = None
        """Until its message is whole."""
        self._context = Context(head)
        self._encoding = head.encoding
        self._max_bytes = max_message_bytes
        self._reader = MessageReader(max_message_bytes)
        self._budget = budget
        self._held = 0
        """What the reader holds, as the budget knows it."""
        self._received = 0
        """Bytes so far."""
        self._rest: asyncio.TimerHandle | None = None
        self._more: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_answered = False
        """Whether something has been sent."""
        self._is_over = False
        if head.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(head.timeout_s, self._expire)
        if handler.request_streaming:
            self._task = asyncio.get_running_loop().create_task(self._run(_Requests(self)))

    # What the stream tells.

    def receive(self, data: memoryview, ended: bool) -> None:
        """More has come."""
        del ended  # the stream knows
        if self._is_over:
            return
        self._reader.add(data)
        self._received += len(data)
        if self._task is None:
            self._begin_when_whole()
        else:
            self._wake()
        if self._reader.held != self._held and not self._is_over:
            self._hold(self._reader.held)
        self._await_rest()

    def broken_off(self) -> None:
        """The caller has gone."""
        self._end()
        self._cancel()

    # What the iterator of requests tells.

    async def next_message(self) -> bytes | None:
        """The next one; None after the last.

        Raises:
            ServingError: it is none, or too large; the call is over.
            ConnectionError: the caller has gone.
        """
        try:
            while not self._is_over:
                taken = self._reader.take()
                if taken:
                    self._hold(self._reader.held)
                    self._stream.consumed(self._reader.held)
                    return await self._decompressed(*taken)
                if self._stream.is_ended:
                    self._check_end()
                    return None
                self._stream.want(self._reader.missing)
                self._more = asyncio.get_running_loop().create_future()
                await self._more
        except ServingError as error:
            self.fail(error)
            raise
        raise ConnectionError("the call is over")

    def parse(self, message: bytes) -> Message:
        """A request.

        Raises:
            ServingError: the bytes are none.
        """
        deserialize = self._handler.request_deserializer
        try:
            return deserialize(message) if deserialize else message
        except Exception as error:
            raise ServingError("Exception deserializing request!") from error

    def fail(self, error: ServingError) -> None:
        """End the call: nobody need work on it any more."""
        self._finish(error.grpc_code, str(error))
        self._cancel()

    def _hold(self, amount: int) -> None:
        """What waits to be whole, or to be read, takes its part of what all callers may keep here."""
        try:
            self._budget.exchange(self._held, amount)
            self._held = amount
        except ServingError as error:
            self.fail(error)

    def _await_rest(self) -> None:
        if self._rest is None and not self._is_over and not self._reader.is_between_messages:
            loop, had_room = asyncio.get_running_loop(), not self._stream.awaits_room
            self._rest = loop.call_later(self.PAUSE_S, self._check_rest, self._received, had_room)

    def _check_rest(self, received: int, had_room: bool) -> None:
        self._rest = None
        if had_room and self._received == received and self._waits_for_caller:
            self.fail(RequestTimeout(f"a message paused for more than {self.PAUSE_S:g} s"))
        else:
            self._await_rest()

    @property
    def _waits_for_caller(self) -> bool:
        """Whether a message is in the middle, wanted, and may be sent."""
        is_wanted = self._task is None or (self._more is not None and not self._more.done())
        return is_wanted and not self._reader.is_between_messages and not self._stream.awaits_room

    # The handler's task.

    def _begin_when_whole(self) -> None:
        try:
            taken = self._reader.take()
            if taken:
                self._end_arrival()
                self._stream.settle()
                self._task = asyncio.get_running_loop().create_task(self._run(taken))
            elif self._stream.is_ended:
                self._check_end()
                self._finish(StatusCode.UNIMPLEMENTED, "the call has no message")
            elif self._is_let_in():
                self._stream.want(self._reader.missing)
        except ServingError as error:
            self._finish(error.grpc_code, str(error))

    def _is_let_in(self) -> bool:
        """Whether room is to be asked for the rest: not before it is known that it need be read.

        A stream's first window holds more than a message's beginning.
        """
        if self._check and not self._reader.is_compressed:
            beginning = self._reader.beginning(BEGINNING_BYTES)
            if beginning is None:
                return False
            check, self._check = self._check, None
            self._arrival = check(beginning)
        return True

    def _end_arrival(self) -> None:
        if self._arrival:
            self._arrival.close()
            self._arrival = None

    async def _run(self, requests: _Requests | tuple[bytes, bool]) -> None:
        """Answer, however the handler ends."""
        context = self._context
        try:
            if isinstance(requests, tuple):
                message, is_compressed = requests
                request = self.parse(await self._decompressed(*requests) if is_compressed else message)
            else:
                request = requests
            if self._handler.response_streaming:
                await self._answer_each(request)
            else:
                await self._answer_once(request)
        except Aborted:
            self._finish(context.code, context.details)
        except asyncio.CancelledError:
            self._finish(StatusCode.CANCELLED, "")
            raise
        except ServingError as error:
            self._finish(error.grpc_code, str(error))
        except Exception as error:
            if context.code is StatusCode.OK:
                logger.exception("a handler of gRPC calls failed")
                context.code, context.details = StatusCode.UNKNOWN, f"internal error: {type(error).__name__}"
            self._finish(context.code, context.details)
        finally:
            # The task of a call that was cancelled holds its frames, they hold the call.
            self._task = None

    async def _answer_once(self, request: Message) -> None:
        handler = self._handler
        method = handler.stream_unary if handler.request_streaming else handler.unary_unary
        response = await method(request, self._context)
        if self._context.code is not StatusCode.OK:
            self._finish(self._context.code, self._context.details)
        elif not self._is_over:
            data = framed(handler.response_serializer(response))
            self._end()
            self._stream.answer(ANSWER, data, OK)

    async def _answer_each(self, request: Message) -> None:
        handler = self._handler
        method = handler.stream_stream if handler.request_streaming else handler.unary_stream
        answers = method(request, self._context)
        if isinstance(answers, AsyncIterator):
            async with aclosing(answers):  # type: ignore[type-var]  # a generator
                async for answer in answers:
                    await self._send(handler.response_serializer(answer))
        else:
            await answers
        self._finish(self._context.code, self._context.details)

    async def _send(self, message: bytes) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._stream.send_headers(ANSWER)
        await self._stream.send(framed(message))

    async def _decompressed(self, message: bytes, is_compressed: bool) -> bytes:
        if not is_compressed:
            return message
        if self._encoding == IDENTITY:
            raise ServingError("a message says that it is compressed, its call does not say how")
        with self._budget.spend(len(message)):
            return bytes(await decompress(message, self._encoding, self._max_bytes))

    def _check_end(self) -> None:
        if not self._reader.is_between_messages:
            raise ServingError("the call ends in the middle of a message")

    # The end.

    def _finish(self, code: StatusCode, details: str) -> None:
        """Send how it ended; nothing after the end."""
        if self._is_over:
            return
        self._end()
        status = trailers(code, details)
        self._stream.end(status if self._has_answered else only_trailers(status))

    def _expire(self) -> None:
        self._finish(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._cancel()

    def _end(self) -> None:
        self._is_over = True
        self._end_arrival()
        if self._held:
            self._hold(0)
        for timer in (self._timer, self._rest):
            if timer:
                timer.cancel()
        self._timer = self._rest = None

    def _cancel(self) -> None:
        self._wake()
        # A task that is cancelled before its first step never comes to its end, where it would be forgotten.
        task, self._task = self._task, None
        if task:
            task.cancel()

    def _wake(self) -> None:
        if self._more and not self._more.done():
            self._more.set_result(None)


class _Requests:
    """The requests of a stream, read when they are asked for."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = await self._call.next_message()
        if message is None:
            raise StopAsyncIteration
        try:
            return self._call.parse(message)
        except ServingError as error:
            self._call.fail(error)
            raise
