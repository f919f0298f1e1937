"""One version of a model that answers: its queue, its counters, and who works with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve import calls
from stn_serve.arrivals import Arrival
from stn_serve.batcher import Batcher
from stn_serve.compute import ComputePool
from stn_serve.errors import FailureReason, ServingError, Unavailable
from stn_serve.model import Model
from stn_serve.model_files import Files
from stn_serve.prediction_statistics import PredictionStatistics
from stn_serve.request_queue import Answer
from stn_serve.scheduling import AS_CONFIGURED, BatchingPolicy, Urgency
from stn_serve.session import instance_count, intra_op_threads
from stn_serve.signature import ModelSignature
from stn_serve.statistics import Statistics
from stn_serve.validation import InferRequest, ValidRequest, validate
from stn_serve.warmup import warm_up

Array = NDArray[Any]


class Scheduler(Protocol):
    """Has the requests for one version computed: `Batcher` does, here."""

    @property
    def pending_count(self) -> int:
        """Requests that wait to run."""
        ...

    def check_room(self, urgency: Urgency = AS_CONFIGURED, remaining_s: float | None = None) -> None:
        """Whether a request whose caller waits for so long would be accepted now; raises `Unavailable` otherwise."""
        ...

    def expect(self, remaining_s: float | None) -> Arrival:
        """Let in a request that is still to be read, or raise as `check_room`."""
        ...

    async def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int, urgency: Urgency = AS_CONFIGURED
    ) -> Answer:
        """Have one request of `rows` rows computed."""
        ...

    async def close(self, grace_s: float | None = None) -> None:
        """Refuse what comes and finish what waits and runs, at most for `grace_s`."""
        ...


class Users:
    """How many requests work with something that must outlive them, each in a `with`. Used on one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()
        self._refusing = False

    def refuse(self) -> None:
        """Let no more in: the server stops."""
        self._refusing = True

    def __enter__(self) -> None:
        """One more, for the time of a `with`.

        Raises:
            Unavailable: no more are let in.
        """
        if self._refusing:
            raise Unavailable("Server is stopping")
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def leave(self) -> None:
        """Wait until there is none."""
        await self._none.wait()


@dataclass(frozen=True, slots=True)
class Shared:
    """What the versions of a process share."""

    pool: ComputePool
    """Where they compute."""
    count_predictions: bool = True
    """Whether they count what they answer."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer."""

    model: ModelSignature
    batcher: Scheduler
    statistics: Statistics
    predictions: PredictionStatistics | None
    """None where they are not counted, or the model does not say what its outputs mean."""
    load_s: float
    """Seconds that loading and warm-up took."""
    files: Files
    """What it was loaded from."""
    users: Users = field(default_factory=Users)
    """Requests that have found it: it stays whole until the last of them is answered."""

    @classmethod
    def load(
        cls,
        directory: Path,
        version: int,
        config: ModelConfig,
        files: Files,
        shared: Shared,
        predecessor: ServedModel | None = None,
    ) -> Self:
        """Load and warm up one version; it goes on counting where the state of it that was served before is.

        Raises:
            ConfigurationError: it cannot be served; says why.
        """
        started = time.perf_counter()
        model = Model.load(directory, version, config)
        warm_up(model, directory)
        statistics = predecessor.statistics if predecessor else Statistics()
        batcher = Batcher(
            model.name,
            model.run,
            BatchingPolicy.from_config(config, pad=not model.runs_on_cpu),
            statistics,
            shared.pool,
            instances=instance_count(config),
            cpus=intra_op_threads(config) if model.runs_on_cpu else 0,
        )
        predictions = counted_predictions(model, shared.count_predictions, predecessor)
        return cls(model, batcher, statistics, predictions, time.perf_counter() - started, files)

    def request(self) -> ServedRequest:
        """One request, which begins now; to be used in a `with`."""
        return ServedRequest(self)

    async def drain(self) -> None:
        """Finish the requests that have found it, and end its queue; nobody may find it any more."""
        await self.users.leave()
        await self.batcher.close()


@dataclass(slots=True)
class ServedRequest:
    """What one request asks of a version; counted as failed if its `with` raises, and as answered if it has run."""

    served: ServedModel
    rows: int = 0
    answer: Answer | None = None
    began_ns: int = field(default_factory=time.perf_counter_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        statistics, elapsed_ns = self.served.statistics, time.perf_counter_ns() - self.began_ns
        if error:
            statistics.record_failure(elapsed_ns, _failure_reason(error))
        elif self.answer:
            statistics.record_success(self.rows, elapsed_ns, self.answer.queue_ns, self.answer.phases)

    def check_room(self, urgency: Urgency, remaining_s: float | None) -> None:
        """Whether it would be accepted, before its tensors are looked at.

        Raises:
            Unavailable: refused for now.
        """
        self.served.batcher.check_room(urgency, remaining_s)

    def expect(self, remaining_s: float | None) -> Arrival:
        """As `check_room`, before it is read: see `Batcher.expect`.

        Raises:
            Unavailable: refused for now.
        """
        return self.served.batcher.expect(remaining_s)

    async def infer(self, request: InferRequest) -> Answer:
        """Validate and run tensors.

        Raises:
            InvalidRequest: they do not fit the model's signature.
            Unavailable: refused for now.
            ModelFailure: the model failed.
        """
        return await self.run(validate(request, self.served.model), request.urgency)

    async def run(self, request: ValidRequest, urgency: Urgency = AS_CONFIGURED) -> Answer:
        """Queue and run what is valid."""
        arrived_ns = time.perf_counter_ns()
        answer = await self.served.batcher.infer(request.inputs, request.outputs, request.rows, urgency)
        self.rows, self.answer = request.rows, answer
        calls.answered(request.rows, arrived_ns, answer)
        if self.served.predictions:
            self.served.predictions.note(answer.outputs)
        return answer


def counted_predictions(
    model: ModelSignature, wanted: bool, predecessor: ServedModel | None
) -> PredictionStatistics | None:
    """Of a version that goes on counting where its predecessor is; None for what cannot or shall not be counted."""
    if not (wanted and model.metadata):
        return None
    if predecessor and predecessor.predictions and predecessor.model.metadata == model.metadata:
        return predecessor.predictions
    return PredictionStatistics(model.metadata)


def _failure_reason(error: BaseException) -> FailureReason:
    if isinstance(error, asyncio.CancelledError):
        return "CANCELED"
    return error.failure_reason if isinstance(error, ServingError) else "OTHER"
