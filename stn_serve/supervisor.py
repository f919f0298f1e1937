"""Several processes that serve together: started, watched, replaced when they end, and told of each other's changes.

The supervisor itself loads no model and answers no request but those of Prometheus; it accepts connections, and hands
them over. The ports are open when all workers have loaded their models; after that, whoever serves serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import Sequence

from tritonclient.grpc import service_pb2

from stn_serve.channel import Handler, Json
from stn_serve.errors import ConfigurationError, ServingError, Unavailable
from stn_serve.exposition import Family, lasting, merge
from stn_serve.journal import Journal
from stn_serve.settings import ServerSettings
from stn_serve.statistics_merge import merge_statistics
from stn_serve.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 30.0
"""Before a worker is replaced; it doubles while they keep ending."""
WELL_AFTER_S = 60.0
"""A worker that has served for so long starts anew with the first pause."""
OBSERVE_S = 1.0
"""Between two reports of each worker: what it counts after the last one before it is killed is lost."""
STOP_MARGIN_S = 5.0
"""What a worker may take beyond its grace time before it is killed."""


class Supervisor:
    """Of `settings.workers` processes."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._serving: list[WorkerProcess] = []
        self._starting: set[WorkerProcess] = set()
        self._journal = Journal()
        self._changing = asyncio.Lock()
        self._ended_metrics: Sequence[Family] = ()
        self._ended_statistics = service_pb2.ModelStatisticsResponse()
        self._restarts = 0
        self._handlers: dict[str, Handler] = {"spread": self._spread, "statistics": self._statistics}

    async def start(self) -> list[tuple[str, str, bool, str]]:
        """Start all workers, which take connections when all have loaded; returns the table of models.

        Raises:
            ConfigurationError: a worker cannot serve.
        """
        self._serving = await asyncio.gather(*(self._start_one() for _ in range(self._settings.workers)))
        await asyncio.gather(*(worker.open() for worker in self._serving))
        return [(row[0], row[1], row[2], row[3]) for row in self._serving[0].models]

    @property
    def workers(self) -> Sequence[WorkerProcess]:
        """That serve."""
        return self._serving

    async def supervise(self) -> None:
        """Replace workers that end, for ever.

        Raises:
            ConfigurationError: none serves any more, and a new one cannot.
        """
        await asyncio.gather(self._observe(), *(self._keep(worker) for worker in self._serving))

    async def stop(self) -> None:
        """Let all finish what is in flight."""
        for worker in self._starting:
            worker.kill()
        within_s = self._settings.drain_s + self._settings.grace_s + STOP_MARGIN_S
        await asyncio.gather(*(worker.stop(within_s) for worker in self._serving))

    def kill(self) -> None:
        """End all at once."""
        for worker in (*self._serving, *self._starting):
            worker.kill()

    async def snapshot(self) -> list[Family]:
        """What all workers have counted, those that have ended included."""
        await asyncio.gather(*(worker.report() for worker in self._serving))
        own = [
            Family("stn_workers", "gauge", "Workers that serve", {(): len(self._serving)}),
            Family("stn_worker_restarts_total", "counter", "Workers that were replaced", {(): self._restarts}),
        ]
        return merge([*(worker.metrics for worker in self._serving), self._ended_metrics, own])

    async def _start_one(self) -> WorkerProcess:
        return await WorkerProcess.start(self._settings, self._handlers, self._starting)

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(OBSERVE_S)
            await asyncio.gather(*(worker.report() for worker in self._serving))

    async def _keep(self, worker: WorkerProcess) -> None:
        """One place: whoever ends there is replaced."""
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            how = await worker.ended()
            self._bury(worker)
            if time.monotonic() - began > WELL_AFTER_S:
                pause_s = FIRST_PAUSE_S
            logger.error("worker %d ended with %s; %d still serve", worker.id, how, len(self._serving))
            worker, pause_s = await self._replace(pause_s)

    async def _replace(self, pause_s: float) -> tuple[WorkerProcess, float]:
        """A new worker that serves, and the pause before the next."""
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                worker = await self._start_one()
                await self._admit(worker)
            except ServingError as error:
                if isinstance(error, ConfigurationError) and not self._serving:
                    raise
                logger.error("a worker could not be replaced, next try in %g s: %s", pause_s, error)  # noqa: TRY400
            else:
                self._restarts += 1
                logger.info("worker %d serves", worker.id)
                return worker, pause_s

    async def _admit(self, worker: WorkerProcess) -> None:
        """Bring a new worker to where the others are, and let it serve."""
        try:
            async with self._changing:
                for operation, arguments in self._journal:
                    await worker.perform(operation, *arguments)
                await worker.open()
                self._serving.append(worker)
        except BaseException:
            worker.kill()
            raise

    def _bury(self, worker: WorkerProcess) -> None:
        """Keep what it counted: sums must not fall."""
        self._serving.remove(worker)
        self._ended_metrics = merge([self._ended_metrics, lasting(worker.metrics)])
        self._ended_statistics = merge_statistics([self._ended_statistics, worker.statistics])

    async def _spread(self, operation: str, *arguments: Json) -> None:
        """Make a change in every worker.

        Where one cannot follow the others it is replaced, so that all answer alike.

        Raises:
            ServingError: none can make it.
        """
        async with self._changing:
            workers = list(self._serving)
            outcomes = await asyncio.gather(
                *(worker.perform(operation, *arguments) for worker in workers), return_exceptions=True
            )
            refusals = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
            if len(refusals) == len(workers):
                raise refusals[0] if refusals else Unavailable("no worker serves at the moment")
            self._journal.note(operation, arguments)
            for worker, outcome in zip(workers, outcomes, strict=True):
                if isinstance(outcome, BaseException):
                    logger.error("worker %d is replaced: it could not follow the others: %s", worker.id, outcome)
                    worker.kill()

    async def _statistics(self) -> str:
        await asyncio.gather(*(worker.report() for worker in self._serving))
        total = merge_statistics([*(worker.statistics for worker in self._serving), self._ended_statistics])
        return b64encode(total.SerializeToString()).decode()
