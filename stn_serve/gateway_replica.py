"""One Triton, as the gateway sees it: whether it answers, what it serves, and the requests that are with it.

It is asked again and again what it serves, which also tells whether it answers. A request that it loses makes it
doubtful: it is asked at once, and preferred less until it has answered. While it does not answer it gets no requests,
and what it last served is remembered: models that are gone for the moment are still known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from stn_serve.errors import DeadlineExceeded, ModelFailure, ServingError, Unavailable
from stn_serve.failures import error_from_code

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
LOOK_PAUSE_S = 0.05
"""Between two looks at one that is doubted again and again."""
LOOK_TIMEOUT_S = 3.0
SILENT_LOOKS = 2
"""After so many looks in a row without any answer, a Triton whose connection stands is taken for hung."""
REFRESH_S = 15.0
"""How often configurations are read again: a model that was loaded again in place looks the same in the index."""

REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")
"""How Triton says UNAVAILABLE of a request that it has received and does not want (core/src/scheduler_utils.cc and
dynamic_batch_scheduler.cc). Asking another one at once would only spread the overload."""

Message = Any
"""A message of tritonclient's, which has no types."""
Headers = tuple[tuple[str, str], ...]


class ModelVersion(NamedTuple):
    """What a request is for."""

    name: str
    version: int


class Lost(Exception):
    """A request without an answer: not received, not accepted, or cut off. It may be sent again, to another Triton."""


class Replica:
    """Asked and used on one event loop."""

    def __init__(self, name: str, channel: grpc.aio.Channel, headers: Headers = ()) -> None:
        self.name = name
        """Its address, as its operator knows it."""
        self.problem = "it has not been asked yet"
        """Why it gets no requests; empty if it does."""
        self.doubted = False
        self.models: Mapping[ModelVersion, ModelConfig] = {}
        """What it serves, or served when it last answered."""
        self.unavailable: Mapping[ModelVersion, str] = {}
        """What it has and cannot serve, and why."""
        self.sent = self.answered = self.lost = self.ejections = 0
        """Requests, and how often it has stopped to get any."""
        self._channel = channel
        self._headers = headers
        self._stub = GRPCInferenceServiceStub(channel)
        self._calls: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()
        self._wake = asyncio.Event()
        self._refresh_at_s = 0.0
        self._silent_looks = 0
        self._answered_before = 0

    @property
    def ready(self) -> bool:
        """Whether it gets requests."""
        return not self.problem

    @property
    def problem_kind(self) -> str:
        """The problem without what gRPC adds from one attempt to the next."""
        return self.problem.partition(";")[0]

    @property
    def in_flight(self) -> int:
        """Requests that are with it."""
        return len(self._calls)

    async def infer(self, request: Message, timeout_s: float, headers: Headers = ()) -> Message:
        """Have one `ModelInferRequest` answered; `headers` go with it.

        Raises:
            Lost: it has not been answered.
            ServingError: the answer is an error.
        """
        call = self._stub.ModelInfer(request, timeout=timeout_s, metadata=self._headers + headers)
        self._calls.add(call)
        self.sent += 1
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            raise self._explain(error.code(), error.details() or "", timeout_s) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._doubt("it has hung") from None  # `eject` has cancelled the call, and nobody the caller
        finally:
            self._calls.discard(call)
        self.answered += 1
        return response

    async def watch(self, changed: Callable[[], None]) -> None:
        """Look at it for ever, and call `changed` when that shows something new."""
        while True:
            await asyncio.sleep(LOOK_PAUSE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._wake.wait()
            try:
                if await self.look():
                    changed()
            except Exception:
                logger.exception("a look at Triton %s failed; the next one follows", self.name)

    async def look(self) -> bool:
        """Ask what it serves; returns whether that, or whether it answers, has changed."""
        before = (self.problem_kind, self.models, self.unavailable)
        self._wake.clear()
        try:
            await self._ask()
        except grpc.aio.AioRpcError as error:
            self._note(error.code(), error.details() or "")
        else:
            self.problem = ""
            self._silent_looks = 0
        self.doubted = False
        self._answered_before = self.answered
        return before != (self.problem_kind, self.models, self.unavailable)

    async def close(self) -> None:
        """Hang up; requests that are still with it are lost."""
        self.problem = "the gateway has hung up"
        await self._channel.close()

    async def _ask(self) -> None:
        index = await self._index(ready_only=True)
        serving = {ModelVersion(model.name, int(model.version)) for model in index.models}
        now_s = time.monotonic()
        if self.ready and serving == self.models.keys() and now_s < self._refresh_at_s:
            return
        if not self.ready:
            await self._check_inference()
        self.unavailable = {
            ModelVersion(model.name, int(model.version)): model.reason
            for model in (await self._index(ready_only=False)).models
            if model.state == "UNAVAILABLE" and model.version.isdecimal() and model.reason != "unloaded"
        }
        configs = await asyncio.gather(*(self._config(version) for version in sorted(serving)))
        self.models = {ModelVersion(config.name, version): config for version, config in configs if config}
        self._refresh_at_s = now_s + REFRESH_S

    async def _index(self, ready_only: bool) -> Message:
        # Of ready models Triton tells from its memory; for the others it reads its repository, which may be far away.
        request = service_pb2.RepositoryIndexRequest(ready=ready_only)
        return await self._stub.RepositoryIndex(request, timeout=LOOK_TIMEOUT_S, metadata=self._headers)

    async def _config(self, version: ModelVersion) -> tuple[int, ModelConfig | None]:
        request = service_pb2.ModelConfigRequest(name=version.name, version=str(version.version))
        try:
            answer = await self._stub.ModelConfig(request, timeout=LOOK_TIMEOUT_S, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):  # gone since
                return version.version, None
            raise
        return version.version, answer.config

    async def _check_inference(self) -> None:
        """One that restricts inference to callers with a secret tells what it serves without; no model is named ''."""
        try:
            await self._stub.ModelInfer(service_pb2.ModelInferRequest(), timeout=LOOK_TIMEOUT_S, metadata=self._headers)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise

    def _note(self, code: grpc.StatusCode, details: str) -> None:
        """A look has failed."""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._silent_looks = 0 if self.answered > self._answered_before else self._silent_looks + 1
            if self.ready and self._silent_looks < SILENT_LOOKS:
                return
            details = f"no answer within {LOOK_TIMEOUT_S:g} s"
        if self.ready:
            self.ejections += 1
        self.problem = details
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            for call in list(self._calls):
                call.cancel()

    def _explain(self, code: grpc.StatusCode, details: str, timeout_s: float) -> Lost | ServingError:
        match code:
            case grpc.StatusCode.UNAVAILABLE if any(words in details for words in REFUSALS):
                return Unavailable(details)
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.NOT_FOUND | grpc.StatusCode.CANCELLED:
                # NOT_FOUND: it had the model a moment ago, and is stopping or has unloaded it.
                return self._doubt(details)
            case grpc.StatusCode.INTERNAL if "RST_STREAM" in details:
                return self._doubt(details)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded(f"no answer from Triton within {timeout_s:.3g} s")
            case grpc.StatusCode.INTERNAL:
                return ModelFailure(details)
            case _:
                return error_from_code(code.value[0], details)

    def _doubt(self, details: str) -> Lost:
        self.lost += 1
        self.doubted = True
        self._wake.set()
        return Lost(details)
