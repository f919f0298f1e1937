"""The OpenAPI document of the HTTP side: what `GET /openapi.json` answers and `docs/openapi.json` holds.

`python -m stn_serve.openapi` prints it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version as package_version
from typing import Any

from stn_serve.http_messages import SEGMENTS
from stn_serve.openapi_schemas import PREDICT_OPTIONS, SCHEMAS, STRING, array, integer, ref

Json = dict[str, Any]

_VERSION = "[/versions/{version}]"
_MODEL = "/models/{model}"
_JSON = "application/json"
_BINARY = "application/octet-stream"
_ANY_BYTES: Json = {"schema": {"type": "string", "format": "binary"}}


@cache
def document() -> Json:
    """The whole document, not to be changed."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stn-serve",
            "version": package_version("stn-serve"),
            "description": "Open Inference Protocol v2 with Triton's extensions, and a typed image API.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(),
        "components": {"schemas": SCHEMAS},
    }


def _paths() -> Json:
    paths: Json = {}
    for method, path, operation in _operations():
        for expanded in expand(path):
            names = re.findall(r"\{(\w+)\}", expanded)
            unique = "".join(f"_{name}" for name in names if f"[/{name}" in path or f"/{{{name}}}]" in path)
            entry = {**operation, "operationId": operation["operationId"] + unique}
            entry["parameters"] = [*map(_path_parameter, names), *operation.get("parameters", [])]
            paths.setdefault(expanded, {})[method.lower()] = entry
    return paths


def expand(path: str) -> tuple[str, ...]:
    """A route's path without and with its optional part."""
    match = re.fullmatch(r"(.*)\[(.*)\](.*)", path)
    return (match[1] + match[3], match[1] + match[2] + match[3]) if match else (path,)


def _operations() -> Iterable[tuple[str, str, Json]]:
    """Method, path and description of every operation."""
    yield "GET", "/v2", _get("server_metadata", "Name, version and extensions", ref("ServerMetadataResponse"))
    yield "GET", "/v2/health/live", _get("server_live", "Whether the process answers", ref("Live"))
    yield "GET", "/v2/health/ready", _get("server_ready", "Whether requests should be sent here", ref("Ready"))
    yield "GET", "/v2/models/stats", _get("all_statistics", "Statistics of every model", ref("ModelStatisticsResponse"))
    yield "GET", f"/v2{_MODEL}{_VERSION}", _get("model_metadata", "Inputs and outputs", ref("ModelMetadataResponse"))
    yield "GET", f"/v2{_MODEL}{_VERSION}/ready", _get("model_ready", "Whether it can answer", ref("Ready"))
    yield "GET", f"/v2{_MODEL}{_VERSION}/config", _get("model_config", "Its whole configuration", ref("ModelConfig"))
    yield (
        "GET",
        f"/v2{_MODEL}{_VERSION}/stats",
        _get("model_statistics", "What it has done", ref("ModelStatisticsResponse")),
    )
    yield "POST", f"/v2{_MODEL}{_VERSION}/infer", _infer()
    yield "POST", f"/v1{_MODEL}{_VERSION}/predict", _predict()
    yield "POST", "/v1/predict", _predict("predict_only_model", "The same where the server has one model")
    yield "GET", "/openapi.json", _get("openapi", "This document", {"type": "object"})
    yield "POST", "/v2/repository/index", _index()
    yield (
        "POST",
        "/v2/repository/{repository}/index",
        _index("other_repository_index", "There is but one, without a name"),
    )
    yield (
        "POST",
        f"/v2/repository{_MODEL}/load",
        _post("load", "Load a model as the repository has it now", body=ref("LoadRequest"), required=False),
    )
    yield (
        "POST",
        f"/v2/repository{_MODEL}/unload",
        _post("unload", "Serve a model no more", body=ref("UnloadRequest"), required=False),
    )
    for kind in ("system", "cuda"):
        yield from _shared_memory(kind)
    for prefix in ("log", "trace"):
        yield from _settings(prefix)


def _shared_memory(kind: str) -> Iterable[tuple[str, str, Json]]:
    path, register = f"/v2/{kind}sharedmemory", f"{kind.capitalize()}Region"
    region = "[/region/{region}]"
    yield (
        "GET",
        f"{path}{region}/status",
        _get(
            f"{kind}_memory_status", "Registered regions", array(ref("SystemSharedMemoryStatusResponse.RegionStatus"))
        ),
    )
    yield (
        "POST",
        f"{path}/region/{{region}}/register",
        _post(f"{kind}_memory_register", "Make shared memory known by a name", body=ref(register)),
    )
    yield "POST", f"{path}{region}/unregister", _post(f"{kind}_memory_unregister", "Forget a region, or all")


def _settings(prefix: str) -> Iterable[tuple[str, str, Json]]:
    path, schema = (
        ("/v2/logging", "LogSettings") if prefix == "log" else (f"/v2[{_MODEL}]/trace/setting", "TraceSettings")
    )
    yield "GET", path, _get(f"{prefix}_settings", "Current settings", ref(schema))
    changes = ref(f"{schema}Changes")
    yield "POST", path, _post(f"{prefix}_settings_change", "Change settings", ref(schema), changes, required=False)


def _infer() -> Json:
    operation = _post("infer", "Run a model on tensors", ref("InferResponse"), ref("InferRequest"))
    operation["requestBody"]["content"][_BINARY] = _ANY_BYTES
    operation["responses"]["200"]["content"][_BINARY] = _ANY_BYTES
    operation["parameters"] = [
        {
            "name": "Inference-Header-Content-Length",
            "in": "header",
            "description": "Bytes of JSON before the raw tensors; 0 where the body is one raw tensor",
            "schema": integer(),
        }
    ]
    return operation


def _predict(name: str = "predict", summary: str = "Classify images, and say where the model looked") -> Json:
    operation = _post(name, summary, ref("PredictResponse"))
    content: Json = {_JSON: {"schema": ref("PredictRequest")}}
    for media_type in ("image/jpeg", "image/png", "image/webp", "image/bmp", _BINARY):
        content[media_type] = _ANY_BYTES
    operation["requestBody"] = {"required": True, "content": content}
    operation["parameters"] = [
        {"name": name, "in": "query", "schema": schema} for name, schema in PREDICT_OPTIONS.items()
    ]
    return operation


def _index(name: str = "repository_index", summary: str = "Every version of every model") -> Json:
    return _post(name, summary, array(ref("IndexEntry")), ref("IndexRequest"), required=False)


def _get(name: str, summary: str, answer: Json) -> Json:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "OK", "content": {_JSON: {"schema": answer}}},
            "default": {"description": "Refused, with the reason", "content": {_JSON: {"schema": ref("Error")}}},
        },
    }


def _post(
    name: str, summary: str, answer: Json | None = None, body: Json | None = None, *, required: bool = True
) -> Json:
    operation = _get(name, summary, answer or {})
    if answer is None:
        operation["responses"]["200"] = {"description": "Done"}
    if body:
        operation["requestBody"] = {"required": required, "content": {_JSON: {"schema": body}}}
    return operation


def _path_parameter(name: str) -> Mapping[str, object]:
    pattern = SEGMENTS.get(name)
    schema = STRING | ({"pattern": f"^{pattern}$"} if pattern else {"minLength": 1})
    return {"name": name, "in": "path", "required": True, "schema": schema}


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=2)
    sys.stdout.write("\n")
