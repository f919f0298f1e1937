"""One version of a model that answers: its queue, its counters, and who works with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.batcher import Batcher
from stn_serve.compute import ComputePool
from stn_serve.errors import ServingError
from stn_serve.model import Model
from stn_serve.model_files import Files
from stn_serve.request_queue import Answer
from stn_serve.scheduling import AS_CONFIGURED, BatchingPolicy, Urgency
from stn_serve.session import instance_count, intra_op_threads
from stn_serve.statistics import Statistics
from stn_serve.validation import InferRequest, ValidRequest, validate
from stn_serve.warmup import warm_up


class Users:
    """How many requests work with something that must outlive them. Used on one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one for the time of a `with`."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def leave(self) -> None:
        """Wait until there is none."""
        await self._none.wait()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer."""

    model: Model
    batcher: Batcher
    statistics: Statistics
    load_s: float
    """Seconds that loading and warm-up took."""
    files: Files
    """What it was loaded from."""
    users: Users = field(default_factory=Users)
    """Requests that have found it: it stays whole until the last of them is answered."""

    @classmethod
    def load(cls, directory: Path, version: int, config: ModelConfig, files: Files, pool: ComputePool) -> Self:
        """Load and warm up one version, which will compute in `pool`.

        Raises:
            ConfigurationError: it cannot be served; says why.
        """
        started = time.perf_counter()
        model = Model.load(directory, version, config)
        warm_up(model, directory)
        statistics = Statistics()
        batcher = Batcher(
            model.name,
            model.run,
            BatchingPolicy.from_config(config, pad=not model.runs_on_cpu),
            statistics,
            pool,
            instances=instance_count(config),
            cpus=intra_op_threads(config) if model.runs_on_cpu else 0,
        )
        return cls(model, batcher, statistics, time.perf_counter() - started, files)

    async def infer(self, request: InferRequest) -> Answer:
        """Validate, queue, run and count one tensor request."""
        with self.counting_failures():
            return await self.run(validate(request, self.model), request.urgency)

    async def run(self, request: ValidRequest, urgency: Urgency = AS_CONFIGURED) -> Answer:
        """Queue and run one request, and count it if it succeeds."""
        started_ns = time.perf_counter_ns()
        answer = await self.batcher.infer(request.inputs, request.outputs, request.rows, urgency)
        elapsed_ns = time.perf_counter_ns() - started_ns
        self.statistics.record_success(request.rows, elapsed_ns, answer.queue_ns, answer.phases)
        return answer

    @contextmanager
    def counting_failures(self) -> Iterator[None]:
        """Count the request that fails inside."""
        started_ns = time.perf_counter_ns()
        try:
            yield
        except ServingError as error:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, error.failure_reason)
            raise
        except asyncio.CancelledError:
            self.statistics.record_failure(time.perf_counter_ns() - started_ns, "CANCELED")
            raise

    async def drain(self) -> None:
        """Finish the requests that have found it, and end its queue; nobody may find it any more."""
        await self.users.leave()
        await self.batcher.close()
