"""The models of the Tritons behind a gateway: which versions they serve, and where they differ.

A version is asked of the Tritons that serve it. One that is not the same everywhere says so in the repository index,
and one that no Triton serves at the moment is still known: its callers are told to come back, not that there is none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Self

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.catalogue import Catalogue
from stn_serve.errors import ConfigurationError, Unavailable, Unsupported
from stn_serve.exposition import Family
from stn_serve.gateway_connection import connect
from stn_serve.gateway_dispatch import Dispatcher
from stn_serve.gateway_metrics import gateway_families
from stn_serve.gateway_models import agree, signature_of
from stn_serve.gateway_replica import ModelVersion, Replica
from stn_serve.gateway_scheduler import GatewayScheduler
from stn_serve.loading import IndexEntry
from stn_serve.served_model import ServedModel, counted_predictions
from stn_serve.settings import ServerSettings
from stn_serve.statistics import Statistics

logger = logging.getLogger(__name__)

UNMANAGED = "models are loaded and unloaded by the Tritons themselves: this is a gateway to them"


class GatewayCatalogue(Catalogue):
    """Follows the Tritons from `start` to `close`."""

    def __init__(self, replicas: Sequence[Replica], settings: ServerSettings) -> None:
        super().__init__()
        self._replicas = replicas
        self._settings = settings
        self._dispatcher = Dispatcher(settings.triton_max_in_flight, len(replicas))
        self._entries: dict[ModelVersion, IndexEntry] = {}
        self._schedulers: dict[ModelVersion, GatewayScheduler] = {}
        self._watching: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, settings: ServerSettings) -> Self:
        """Look at every Triton once, and follow them from then on; one that does not answer may come later.

        Raises:
            ConfigurationError: an address, a certificate or a secret that cannot be used.
        """
        catalogue = cls(connect(settings), settings)
        await asyncio.gather(*(replica.look() for replica in catalogue._replicas))
        catalogue._update()
        for replica in catalogue._replicas:
            _log_state(replica)
            watching = replica.watch(partial(catalogue._note, replica))
            catalogue._watching.append(asyncio.create_task(watching))
        return catalogue

    @property
    def index(self) -> list[IndexEntry]:
        """Every version that a Triton has or had when it last answered."""
        return [entry for _, entry in sorted(self._entries.items())]

    @property
    def ready(self) -> bool:
        """Whether any model can answer."""
        return any(entry.served for entry in self._entries.values())

    def knows(self, name: str) -> bool:
        """Whether a Triton has or had such a model."""
        return any(version.name == name for version in self._entries)

    def find(self, name: str, version: str = "") -> ServedModel:
        """A version; of none in particular the one that most Tritons could answer for, of equals the newest.

        While the Tritons are given a new version one by one, callers who name none are so never crowded onto the first
        that has it.

        Raises:
            NotFound: no Triton has or had such a model or version.
            InvalidRequest: the version is not a number.
            Unavailable: no Triton that has it answers.
        """
        usual = max(self._served.get(name, {}), key=lambda v: (self._ready_count(name, v), v), default=None)
        served = super().find(name, version or str(usual or ""))
        # Once it has hung up, the version itself refuses: the server is stopping.
        if self._watching and not self._ready_count(name, served.model.version):
            raise Unavailable(f"no Triton that serves model '{name}' answers")
        return served

    def families(self) -> Sequence[Family]:
        """Of the Tritons."""
        return gateway_families(self._replicas, self._dispatcher)

    async def look(self) -> None:
        """The index is always as new as the last look at the Tritons."""

    async def load_model(self, name: str) -> None:
        """Refused.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"failed to load '{name}': {UNMANAGED}")

    async def unload_model(self, name: str) -> None:
        """Refused.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(f"failed to unload '{name}': {UNMANAGED}")

    async def close(self, grace_s: float | None = None) -> None:
        """Finish what is with the Tritons, at most for `grace_s`, and hang up."""
        await asyncio.gather(*(scheduler.close(grace_s) for scheduler in self._schedulers.values()))
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        self._watching.clear()
        await asyncio.gather(*(replica.close() for replica in self._replicas))

    def _ready_count(self, name: str, version: int) -> int:
        return self._schedulers[ModelVersion(name, version)].ready_count

    def _note(self, replica: Replica) -> None:
        _log_state(replica)
        self._update()
        self.announce()

    def _update(self) -> None:
        """Put together what the Tritons said when they last answered."""
        before = self._entries
        known = {version for replica in self._replicas for version in (*replica.models, *replica.unavailable)}
        self._entries = {version: self._entry(version) for version in known}
        for version in before.keys() - known:
            self._forget(version)
        self._served = {name: self._served.get(name, {}) for name in {version.name for version in known}}
        for version, entry in self._entries.items():
            if entry.reason and (version not in before or before[version].reason != entry.reason):
                logger.warning("model '%s' version %d: %s", version.name, version.version, entry.reason)

    def _entry(self, version: ModelVersion) -> IndexEntry:
        holders = [replica for replica in self._replicas if version in replica.models]
        if not holders:
            self._forget(version)
            return IndexEntry(*version, reason="; ".join(_differences(version, self._replicas, ())))
        try:
            served = self._serve(version, holders)
        except ConfigurationError as error:
            self._forget(version)
            return IndexEntry(*version, reason=str(error))
        scheduler = self._schedulers[version]
        reasons = "; ".join(_differences(version, self._replicas, scheduler.replicas))
        if not scheduler.ready_count:
            return IndexEntry(*version, reason=reasons or "no Triton that serves it answers")
        return IndexEntry(*version, served, reasons)

    def _serve(self, version: ModelVersion, holders: Sequence[Replica]) -> ServedModel:
        """The version as it was served before, if a holder still sees it so; else as the first that answers does."""
        configs = [replica.models[version] for replica in holders if replica.ready]
        configs = configs or [replica.models[version] for replica in holders]
        served = self._served.get(version.name, {}).get(version.version)
        if served is None or not any(agree(config, served.model.config) for config in configs):
            served = self._open(version, configs[0], served)
        config = served.model.config
        self._schedulers[version].replicas = [r for r in holders if agree(r.models[version], config)]
        return served

    def _open(self, version: ModelVersion, config: ModelConfig, predecessor: ServedModel | None) -> ServedModel:
        started = time.perf_counter()
        model = signature_of(config, version.version)
        statistics = predecessor.statistics if predecessor else Statistics()
        scheduler = GatewayScheduler(model, self._dispatcher, statistics, self._settings.triton_timeout_s)
        predictions = counted_predictions(model, self._settings.prediction_metrics, predecessor)
        served = ServedModel(model, scheduler, statistics, predictions, time.perf_counter() - started, files={})
        self._schedulers[version] = scheduler
        self._served.setdefault(version.name, {})[version.version] = served
        return served

    def _forget(self, version: ModelVersion) -> None:
        """No Triton has it any more; requests that are on their way finish."""
        if self._schedulers.pop(version, None):
            del self._served[version.name][version.version]


def _differences(version: ModelVersion, replicas: Sequence[Replica], asked: Collection[Replica]) -> Iterator[str]:
    """Where a version is not what it is elsewhere."""
    for replica in replicas:
        if not replica.ready or replica in asked:
            continue
        if version in replica.unavailable:
            yield f"{replica.name} cannot serve it: {replica.unavailable[version]}"
        elif version in replica.models:
            yield f"{replica.name} has it with another configuration and is not asked"
        else:
            yield f"{replica.name} does not have it"


def _log_state(replica: Replica) -> None:
    if replica.ready:
        names = sorted({version.name for version in replica.models})
        logger.info("Triton %s answers and serves %s", replica.name, ", ".join(names) or "no model")
    else:
        logger.error("Triton %s gets no requests: %s", replica.name, _advice(replica.problem))


def _advice(problem: str) -> str:
    """What Triton's or gRPC's words mean for the operator."""
    if "protocol is restricted" in problem:
        return f"{problem}: give the gateway that header with --triton-header"
    if "not ready" in problem or "exiting" in problem:
        return f"{problem}: it is starting or stopping"
    return f"{problem}: is it running, and is this the port of its gRPC, 8001 if it does not say else?"
