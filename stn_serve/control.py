"""Operations that change a running server: models, shared memory, log and trace settings, once for both transports."""

from __future__ import annotations

from collections.abc import Mapping

from tritonclient.grpc import service_pb2

from stn_serve.errors import InvalidRequest, NotFound, Unsupported
from stn_serve.log_settings import LogSettings
from stn_serve.registry import ModelRegistry
from stn_serve.shared_memory import SharedMemory

TRACE_SETTINGS = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["triton"],
}
"""There is no tracing: these are Triton's defaults with it switched off."""

NO_CUDA = "CUDA shared memory is not supported"

LOAD_OVERRIDES = ("config", "file:")
UNLOAD_PARAMETERS = ("unload_dependents",)


class Control:
    """What may be changed while the server runs."""

    def __init__(self, registry: ModelRegistry, shared_memory: SharedMemory, logs: LogSettings) -> None:
        self.shared_memory = shared_memory
        self.logs = logs
        self._registry = registry

    async def load(self, repository: str, model: str, parameters: Mapping[str, object]) -> None:
        """Load a model as its repository has it now.

        Raises:
            ServingError: it cannot be loaded, clients may not do so, or a parameter is not known.
        """
        check_repository(repository)
        for name in parameters:
            if name.startswith(LOAD_OVERRIDES):
                raise Unsupported(f"load parameter '{name}' is not supported: the model repository says what is served")
            raise InvalidRequest(f"unrecognized load parameter '{name}'.")
        await self._registry.load_model(model)

    async def unload(self, repository: str, model: str, parameters: Mapping[str, object]) -> None:
        """Serve a model no more; no model here has dependents.

        Raises:
            ServingError: there is no such model, clients may not do so, or a parameter is not known.
        """
        check_repository(repository)
        for name in parameters:
            if name not in UNLOAD_PARAMETERS:
                raise InvalidRequest(f"unrecognized unload parameter '{name}'.")
        await self._registry.unload_model(model)

    def shared_memory_status(self, name: str) -> service_pb2.SystemSharedMemoryStatusResponse:
        """One region, or with no name all of them."""
        status = service_pb2.SystemSharedMemoryStatusResponse()
        for region in self.shared_memory.status(name):
            entry = status.regions[region.name]
            entry.name, entry.key = region.name, region.key
            entry.offset, entry.byte_size = region.offset, region.byte_size
        return status

    def trace_settings(self, model: str, changes: Mapping[str, list[str]]) -> dict[str, list[str]]:
        """Tracing is off. Settings may be read, and set to what they are.

        Raises:
            NotFound: no such model.
            InvalidRequest: an unknown setting.
            Unsupported: it would have to be switched on.
        """
        if model:
            self._registry.find(model)
        for name, values in changes.items():
            if name not in TRACE_SETTINGS:
                raise InvalidRequest(f"unknown trace setting '{name}', expected one of {', '.join(TRACE_SETTINGS)}")
            if values and values != TRACE_SETTINGS[name]:
                raise Unsupported(
                    f"tracing is not supported: {name} stays {', '.join(TRACE_SETTINGS[name]) or 'empty'}"
                )
        return TRACE_SETTINGS


def check_repository(name: str) -> None:
    """There is one repository, which has no name.

    Raises:
        Unsupported: another one is asked for.
    """
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def check_no_cuda_region(name: str) -> None:
    """No CUDA region can be registered.

    Raises:
        NotFound: one is asked for by name.
    """
    if name:
        raise NotFound(f"Unable to find cuda shared memory region: '{name}'")
