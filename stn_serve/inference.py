"""Every operation of the Open Inference Protocol, once; the transports translate.

Control answers are the protocol's own messages, which gRPC sends as they are and HTTP as JSON of the same names.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from stn_serve import calls
from stn_serve.arrivals import Arrival
from stn_serve.budget import Budget
from stn_serve.catalogue import Catalogue
from stn_serve.errors import InvalidRequest, NotFound, Unavailable
from stn_serve.outputs import OutputTensor, deliver
from stn_serve.served_model import ServedModel, ServedRequest
from stn_serve.signature import TensorSignature
from stn_serve.statistics import ComputeDurations, Duration
from stn_serve.validation import InferRequest, RequestedOutput

Array = NDArray[Any]

SERVER_NAME = "stn-serve"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)
"""Only what is whole: clients choose their calls by this list."""


@dataclass(slots=True)
class InferResponse:
    """The outputs of a tensor request, in the order they were asked for."""

    model_name: str
    model_version: int
    id: str
    outputs: Sequence[OutputTensor]


class Inference:
    """The data plane over a registry of models."""

    def __init__(self, registry: Catalogue, max_pending_bytes: int = sys.maxsize) -> None:
        self.registry = registry
        self.pending = Budget(max_pending_bytes, "bytes of requests")
        """What the transports hold in memory until it is answered."""
        self.stopping = asyncio.Event()
        """Set when the server no longer takes requests."""
        self.total_statistics: Callable[[], Awaitable[service_pb2.ModelStatisticsResponse]] | None = None
        """What all processes of the server have counted; None where there is but this one."""
        self._wanted = True

    def server_ready(self) -> bool:
        """Whether requests should be sent here."""
        return self._wanted and self.registry.ready

    def withdraw(self) -> None:
        """Be ready no more, and tell who watches; requests that come are still answered."""
        self._wanted = False
        self.registry.announce()

    def stop(self) -> None:
        """Take no more requests."""
        self.stopping.set()
        self.registry.announce()

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a version (of none in particular: any) can answer."""
        try:
            self.registry.find(name, version)
        except (NotFound, Unavailable):
            return False
        return True

    def server_metadata(self) -> service_pb2.ServerMetadataResponse:
        """Name, version and extensions."""
        return service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=package_version("stn-serve"), extensions=EXTENSIONS
        )

    def model_metadata(self, name: str, version: str) -> service_pb2.ModelMetadataResponse:
        """The signature, and the versions that are ready."""
        model = self.registry.find(name, version).model
        versions = [version] if version else [str(served.model.version) for served in self.registry.find_all(name)]
        return service_pb2.ModelMetadataResponse(
            name=model.name,
            versions=versions,
            platform=model.config.platform or model.config.backend,
            inputs=[_tensor_metadata(spec) for spec in model.inputs],
            outputs=[_tensor_metadata(spec) for spec in model.outputs],
        )

    def model_config(self, name: str, version: str) -> service_pb2.ModelConfigResponse:
        """The configuration with its defaults filled in."""
        return service_pb2.ModelConfigResponse(config=self.registry.find(name, version).model.config)

    async def statistics(self, name: str, version: str) -> service_pb2.ModelStatisticsResponse:
        """As `model_statistics`, of all processes of the server together.

        Raises:
            InvalidRequest: no such model or version.
        """
        own = self.model_statistics(name, version)
        if self.total_statistics is None:
            return own
        wanted = {(entry.name, entry.version) for entry in own.model_stats}
        total = await self.total_statistics()
        entries = [entry for entry in total.model_stats if (entry.name, entry.version) in wanted]
        return service_pb2.ModelStatisticsResponse(model_stats=entries)

    def model_statistics(self, name: str, version: str) -> service_pb2.ModelStatisticsResponse:
        """Of one version, of all versions of a model, or with no name of every model; in this process."""
        return service_pb2.ModelStatisticsResponse(
            model_stats=[_model_statistics(served) for served in self._counted(name, version)]
        )

    async def repository_index(self, ready_only: bool) -> service_pb2.RepositoryIndexResponse:
        """Every version of every model, and why some are not served; of a model that was never loaded the name."""
        await self.registry.look()
        entries = [
            service_pb2.RepositoryIndexResponse.ModelIndex(
                name=entry.name,
                version=str(entry.version or ""),
                state=entry.state,
                reason=entry.reason,
            )
            for entry in self.registry.index
            if entry.served or not ready_only
        ]
        return service_pb2.RepositoryIndexResponse(models=entries)

    @contextmanager
    def request(self, model: str, version: str, request_id: str = "") -> Iterator[ServedRequest]:
        """A model's version for the time of one request, from its first byte that is looked at to its answer's last.

        Raises:
            NotFound: no such model or version.
        """
        calls.note(model, version, request_id)
        served = self.registry.find(model, version)
        with served.users, served.request() as request:
            calls.note(served.model.name, str(served.model.version), request_id)
            yield request

    def expect(self, model: str, version: str, remaining_s: float | None) -> Arrival:
        """Let in a request that is still to be read, if its caller waits long enough; to be closed when it has been.

        Raises:
            NotFound: no such model or version.
            Unavailable: refused for now, and counted.
        """
        with self.request(model, version) as request:
            return request.expect(remaining_s)

    async def infer(self, request: ServedRequest, asked: InferRequest) -> InferResponse:
        """Run tensors.

        Raises:
            InvalidRequest: they do not fit the model's signature.
            Unavailable: refused for now.
            ModelFailure: the model failed.
        """
        answer = await request.infer(asked)
        model = request.served.model
        signatures = {spec.name: spec for spec in model.outputs}
        wanted = {output.name: output for output in asked.outputs}
        outputs = [
            deliver(signatures[name], array, wanted.get(name) or RequestedOutput(name))
            for name, array in answer.outputs.items()
        ]
        return InferResponse(model.name, model.version, asked.id, outputs)

    def _counted(self, name: str, version: str) -> Sequence[ServedModel]:
        if not name:
            return list(self.registry)
        try:
            return [self.registry.find(name, version)] if version else self.registry.find_all(name)
        except NotFound as error:
            what = (
                f"model version is not available for model '{name}'" if version else f"model '{name}' is not available"
            )
            raise InvalidRequest(f"requested {what}") from error


def _tensor_metadata(spec: TensorSignature) -> service_pb2.ModelMetadataResponse.TensorMetadata:
    return service_pb2.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _model_statistics(served: ServedModel) -> service_pb2.ModelStatistics:
    counted = served.statistics
    return service_pb2.ModelStatistics(
        name=served.model.name,
        version=str(served.model.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=service_pb2.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            cache_hit=_duration(Duration()),
            cache_miss=_duration(Duration()),
            **_phases(counted.compute),
        ),
        batch_stats=[
            service_pb2.InferBatchStatistics(batch_size=rows, **_phases(durations))
            for rows, durations in sorted(counted.batches.items())
        ],
    )


def _phases(durations: ComputeDurations) -> dict[str, service_pb2.StatisticDuration]:
    return {
        "compute_input": _duration(durations.compute_input),
        "compute_infer": _duration(durations.compute_infer),
        "compute_output": _duration(durations.compute_output),
    }


def _duration(duration: Duration) -> service_pb2.StatisticDuration:
    return service_pb2.StatisticDuration(count=duration.count, ns=duration.ns)
