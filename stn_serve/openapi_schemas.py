"""What the OpenAPI document says of JSON bodies; members that no schema names are ignored, as Triton ignores them."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from stn_serve.control import TRACE_SETTINGS
from stn_serve.description import MAX_CROP_SIDE
from stn_serve.log_settings import FIXED, LEVELS
from stn_serve.parameters import EMPTY_FINAL_RESPONSE
from stn_serve.proto import image_prediction_pb2
from stn_serve.proto_schema import schemas
from stn_serve.tensors import DATATYPES

Json = dict[str, Any]

BOOLEAN: Json = {"type": "boolean"}
STRING: Json = {"type": "string"}
UINT32_MAX = 2**32 - 1


def ref(name: str) -> Json:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(items: Json) -> Json:
    """An array of `items`."""
    return {"type": "array", "items": items}


def integer(minimum: int = 0, maximum: int | None = None) -> Json:
    """A whole number within bounds."""
    return {"type": "integer", "minimum": minimum} | ({} if maximum is None else {"maximum": maximum})


def _record(required: Json, optional: Json | None = None) -> Json:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _options(properties: Json) -> Json:
    return {"type": "object", "properties": properties}


_SPAN = {
    "shared_memory_region": STRING,
    "shared_memory_offset": integer(),
    "shared_memory_byte_size": integer(1),
}
_TENSOR = {"name": STRING, "datatype": {"type": "string", "enum": list(DATATYPES)}, "shape": array(integer())}
_DATA: Json = {"type": "array", "description": "Row by row, nested or flat", "items": {}}
_RESERVED: Json = {"propertyNames": {"anyOf": [{"const": EMPTY_FINAL_RESPONSE}, {"not": {"pattern": "^triton_"}}]}}
_LEVELS: Json = dict.fromkeys(LEVELS, BOOLEAN)
_STRINGS: Json = {"anyOf": [STRING, array(STRING), {"type": "null"}]}

_REQUEST_PARAMETERS = _RESERVED | _options(
    {
        "binary_data_output": BOOLEAN,
        "timeout": {"type": "integer", "description": "Microseconds that it may queue, where the model allows it"},
        "priority": integer(),
        EMPTY_FINAL_RESPONSE: BOOLEAN,
    }
)

PREDICT_OPTIONS: Json = {
    "id": STRING,
    "top_k": integer(0, UINT32_MAX),
    "crops": BOOLEAN,
    "crop_side": integer(0, MAX_CROP_SIDE),
}

SCHEMAS: Json = {
    **schemas(
        service_pb2.ServerMetadataResponse,
        service_pb2.ModelMetadataResponse,
        service_pb2.ModelStatisticsResponse,
        service_pb2.SystemSharedMemoryStatusResponse.RegionStatus,
        model_config_pb2.ModelConfig,
        image_prediction_pb2.PredictResponse,
    ),
    "Error": _record({"error": STRING}),
    "Live": _record({"live": BOOLEAN}),
    "Ready": _record({"ready": BOOLEAN}, {"name": STRING}),
    "InferRequest": _record(
        {"inputs": array(ref("InputTensor"))},
        {"id": STRING, "outputs": array(ref("RequestedOutput")), "parameters": _REQUEST_PARAMETERS},
    ),
    "InputTensor": _record(_TENSOR, {"data": _DATA, "parameters": _options({"binary_data_size": integer(), **_SPAN})}),
    "RequestedOutput": _record(
        {"name": STRING},
        {"parameters": _options({"binary_data": BOOLEAN, "classification": integer(1), **_SPAN})},
    ),
    "InferResponse": _record(
        {"model_name": STRING, "model_version": STRING, "outputs": array(ref("OutputTensor"))}, {"id": STRING}
    ),
    "OutputTensor": _record(_TENSOR, {"data": _DATA, "parameters": _options({"binary_data_size": integer(), **_SPAN})}),
    "PredictRequest": _record({"images": array({"type": "string", "contentEncoding": "base64"})}, PREDICT_OPTIONS),
    "IndexRequest": _options({"ready": BOOLEAN}),
    "IndexEntry": _record({"name": STRING, "state": STRING}, {"version": STRING, "reason": STRING}),
    "LoadRequest": _options({"parameters": _options({}) | {"additionalProperties": False}}),
    "UnloadRequest": _options({"parameters": _options({"unload_dependents": {}}) | {"additionalProperties": False}}),
    "SystemRegion": _record({"key": STRING, "byte_size": integer(1)}, {"offset": integer()}),
    "CudaRegion": {"type": "object", "description": "CUDA shared memory is not supported"},
    "LogSettings": _record({**_LEVELS, "log_verbose_level": integer(), **dict.fromkeys(FIXED, STRING)}),
    "LogSettingsChanges": _options(
        {**_LEVELS, "log_verbose_level": integer(0, UINT32_MAX), **{name: {"const": v} for name, v in FIXED.items()}}
    )
    | {"additionalProperties": False},
    "TraceSettings": _record({**dict.fromkeys(TRACE_SETTINGS, STRING), "trace_level": array(STRING)}),
    "TraceSettingsChanges": _options(dict.fromkeys(TRACE_SETTINGS, _STRINGS)) | {"additionalProperties": False},
}
