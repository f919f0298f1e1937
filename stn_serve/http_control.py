"""HTTP handlers of what changes a running server: models, shared memory, log and trace settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stn_serve.control import NO_CUDA, Control, check_no_cuda_region, check_repository
from stn_serve.errors import InvalidRequest, Unsupported
from stn_serve.http_messages import Request, Response, Route, json_object, json_response
from stn_serve.inference import Inference
from stn_serve.proto_json import to_json


class HttpControl:
    """Translates to `Control`."""

    def __init__(self, inference: Inference, control: Control) -> None:
        self._inference = inference
        self._control = control
        self.routes = (
            Route("POST", "/v2/repository/index", "model-repository", self._repository_index),
            Route("POST", "/v2/repository/{repository}/index", "model-repository", self._repository_index),
            Route("POST", "/v2/repository/models/{model}/load", "model-repository", self._load),
            Route("POST", "/v2/repository/models/{model}/unload", "model-repository", self._unload),
            Route("GET", "/v2/systemsharedmemory[/region/{region}]/status", "shared-memory", self._shared_memory),
            Route("POST", "/v2/systemsharedmemory/region/{region}/register", "shared-memory", self._register),
            Route("POST", "/v2/systemsharedmemory[/region/{region}]/unregister", "shared-memory", self._unregister),
            Route("GET", "/v2/cudasharedmemory[/region/{region}]/status", "shared-memory", self._cuda_status),
            Route("POST", "/v2/cudasharedmemory/region/{region}/register", "shared-memory", self._cuda_register),
            Route("POST", "/v2/cudasharedmemory[/region/{region}]/unregister", "shared-memory", self._cuda_unregister),
            Route("GET", "/v2[/models/{model}]/trace/setting", "trace", self._trace_settings),
            Route("POST", "/v2[/models/{model}]/trace/setting", "trace", self._trace_settings),
            Route("GET", "/v2/logging", "logging", self._log_settings),
            Route("POST", "/v2/logging", "logging", self._log_settings),
        )

    async def _repository_index(self, request: Request) -> Response:
        check_repository(request.names.get("repository", ""))
        ready_only = _fields(request).get("ready", False)
        if not isinstance(ready_only, bool):
            raise InvalidRequest("'ready' must be a boolean")
        index = to_json(await self._inference.repository_index(ready_only))
        return json_response([{name: value for name, value in entry.items() if value} for entry in index["models"]])

    async def _load(self, request: Request) -> Response:
        await self._control.load("", request.model, _parameters(request))
        return Response()

    async def _unload(self, request: Request) -> Response:
        await self._control.unload("", request.model, _parameters(request))
        return Response()

    async def _shared_memory(self, request: Request) -> Response:
        regions = self._control.shared_memory_status(request.region).regions
        return json_response([to_json(region) for region in regions.values()])

    async def _register(self, request: Request) -> Response:
        fields = _fields(request)
        key, byte_size = _field(fields, "key", str), _field(fields, "byte_size", int)
        offset = _field(fields, "offset", int) if "offset" in fields else 0
        await self._control.register_shared_memory(request.region, key, offset, byte_size)
        return Response()

    async def _unregister(self, request: Request) -> Response:
        await self._control.unregister_shared_memory(request.region)
        return Response()

    async def _cuda_status(self, request: Request) -> Response:
        check_no_cuda_region(request.region)
        return json_response([])

    async def _cuda_register(self, _: Request) -> Response:
        raise Unsupported(NO_CUDA)

    async def _cuda_unregister(self, _: Request) -> Response:
        return Response()

    async def _trace_settings(self, request: Request) -> Response:
        changes = {name: _strings(name, value) for name, value in _fields(request).items()}
        settings = self._control.trace_settings(request.model, changes)
        # Triton writes a list for the levels only.
        return json_response({name: v if name == "trace_level" else v[0] for name, v in settings.items()})

    async def _log_settings(self, request: Request) -> Response:
        await self._control.change_logs(_fields(request))
        return json_response(self._control.logs.read())


def _fields(request: Request) -> dict[str, Any]:
    return json_object(request.body) if request.body else {}


def _parameters(request: Request) -> Mapping[str, object]:
    parameters = _fields(request).get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidRequest("'parameters' must be an object")
    return parameters


def _field(fields: Mapping[str, Any], name: str, kind: type) -> Any:  # noqa: ANN401 - of `kind`
    if name not in fields:
        raise InvalidRequest(f"Shared memory register request has no '{name}' field")
    if type(fields[name]) is not kind:
        raise InvalidRequest(f"'{name}' must be {'a string' if kind is str else 'an integer'}")
    return fields[name]


def _strings(name: str, value: object) -> list[str]:
    """A trace setting: a string, a list of them, or null for the default."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    strings = [element for element in values if isinstance(element, str)]
    if len(strings) != len(values):
        raise InvalidRequest(f"trace setting '{name}' must be a string or a list of strings")
    return strings
