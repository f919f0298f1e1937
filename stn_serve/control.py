"""Operations that change a running server: models, shared memory, log and trace settings, once for both transports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2

from stn_serve.catalogue import Catalogue
from stn_serve.errors import InvalidRequest, NotFound, Unsupported
from stn_serve.log_settings import LogSettings
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


Spread = Callable[..., Awaitable[None]]
"""Takes the name of an operation and its arguments, as `Control.perform`."""


class Control:
    """What may be changed while the server runs."""

    def __init__(
        self,
        registry: Catalogue,
        shared_memory: SharedMemory,
        logs: LogSettings,
        allow_log_settings: bool = False,
    ) -> None:
        self.shared_memory = shared_memory
        self.logs = logs
        self.spread: Spread = self.perform
        """Performs a change in every process of the server; here there is one."""
        self._allow_log_settings = allow_log_settings
        self._registry = registry
        self._operations: Mapping[str, Callable[..., Awaitable[None]]] = {
            "load": self._load,
            "unload": self._unload,
            "register": self._register,
            "unregister": self._unregister,
            "log": self._log,
        }

    async def perform(self, operation: str, *arguments: Any) -> None:  # noqa: ANN401 - JSON
        """Change this process alone.

        Raises:
            ServingError: it is refused.
        """
        await self._operations[operation](*arguments)

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
        await self.spread("load", model)

    async def unload(self, repository: str, model: str, parameters: Mapping[str, object]) -> None:
        """Serve a model no more; no model here has dependents.

        Raises:
            ServingError: there is no such model, clients may not do so, or a parameter is not known.
        """
        check_repository(repository)
        for name in parameters:
            if name not in UNLOAD_PARAMETERS:
                raise InvalidRequest(f"unrecognized unload parameter '{name}'.")
        await self.spread("unload", model)

    async def register_shared_memory(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Let requests name a region; see `SharedMemory.register`.

        Raises:
            ServingError: it cannot be used, or clients may not do so.
        """
        await self.spread("register", name, key, offset, byte_size)

    async def unregister_shared_memory(self, name: str) -> None:
        """Forget one region, or with no name all of them."""
        await self.spread("unregister", name)

    async def change_logs(self, settings: Mapping[str, object]) -> None:
        """Change which levels are written; what repeats the present settings changes nothing.

        Raises:
            InvalidRequest: an unknown setting, or a value of another type.
            Unsupported: clients may not do so, or the setting is fixed.
        """
        self.logs.check(settings)
        if settings.items() <= self.logs.read().items():
            return
        if not self._allow_log_settings:
            raise Unsupported(
                "changing log settings is not allowed; the server's operator allows it: allow_log_settings"
            )
        await self.spread("log", dict(settings))

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

    async def _load(self, model: str) -> None:
        await self._registry.load_model(model)

    async def _unload(self, model: str) -> None:
        await self._registry.unload_model(model)

    async def _register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self.shared_memory.register(name, key, offset, byte_size)

    async def _unregister(self, name: str) -> None:
        self.shared_memory.unregister(name)

    async def _log(self, settings: Mapping[str, object]) -> None:
        self.logs.change(settings)


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
