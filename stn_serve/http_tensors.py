"""Bodies of `POST /v2/models/NAME/infer`: JSON, and JSON followed by raw tensors (the binary extension)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from numpy.typing import NDArray

from stn_serve import calls
from stn_serve.errors import InvalidRequest
from stn_serve.inference import InferResponse
from stn_serve.outputs import OutputTensor
from stn_serve.parameters import class_count, span, urgency
from stn_serve.scheduling import AS_CONFIGURED
from stn_serve.shared_memory import SharedMemory
from stn_serve.signature import ModelSignature
from stn_serve.tensors import DATATYPES, Buffer, byte_size, from_json, to_json, to_raw
from stn_serve.validation import InferRequest, RequestedOutput, WireTensor

Array = NDArray[Any]
Fields = Mapping[str, Any]


@dataclass(slots=True)
class HttpInferRequest:
    """A tensor request, and how its caller wants each output."""

    request: InferRequest
    binary: Mapping[str, bool]
    """By output, where the request says so."""
    binary_by_default: bool


def parse(
    model_name: str, model_version: str, body: Buffer, header_length: str | None, shared_memory: SharedMemory
) -> HttpInferRequest:
    """A body as a tensor request; `header_length` is the `Inference-Header-Content-Length`.

    Raises:
        InvalidRequest: not the JSON of the protocol, or raw tensors of another size than it says.
        NotFound: a region of shared memory that is not registered.
        Unsupported: it uses shared memory, and the server does not.
    """
    document, raw = _split(body, header_length)
    fields = _object("body", _loads(document))
    identity = _get(fields, "id", str, "")
    calls.name(identity)  # whatever is wrong with the rest
    parameters = _parameters(fields)
    outputs = [_object("outputs", output) for output in _list(fields, "outputs")] if "outputs" in fields else []
    request = InferRequest(
        model_name=model_name,
        model_version=model_version,
        id=identity,
        inputs=_inputs(fields, _RawTensors(raw, model_name), shared_memory),
        outputs=[_requested_output(output, shared_memory) for output in outputs],
        urgency=urgency(parameters) if parameters else AS_CONFIGURED,
    )
    binary = {_name(output): _get(_parameters(output), "binary_data", bool, False) for output in outputs}
    return HttpInferRequest(request, binary, _get(parameters, "binary_data_output", bool, False))


def parse_raw(model: ModelSignature, model_version: str, body: Buffer) -> HttpInferRequest:
    """A body that is nothing but the one input of a model, one row of it; every output is wanted as raw bytes.

    Raises:
        InvalidRequest: the model has several inputs, or the shape cannot be told from the number of bytes.
    """
    if len(model.inputs) != 1:
        raise InvalidRequest(
            f"Raw request must only have 1 input to be deduced but model '{model.name}' has {len(model.inputs)} inputs"
        )
    (spec,) = model.inputs
    if spec.dims.count(-1) > 1:
        raise InvalidRequest(
            f"the shape of a raw request for model '{model.name}' cannot be deduced: {list(spec.dims)}"
        )
    known = byte_size(spec.datatype, [abs(dim) for dim in spec.dims])
    deduced = len(body) // known if known else 1
    dims = tuple(deduced if dim == -1 else dim for dim in spec.dims)
    tensor = WireTensor(spec.name, spec.datatype, (1, *dims) if spec.batched else dims, body)
    return HttpInferRequest(InferRequest(model_name=model.name, model_version=model_version, inputs=[tensor]), {}, True)


def serialize(asked: HttpInferRequest, response: InferResponse) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON where raw tensors follow it."""
    raw: list[bytes] = []
    outputs = [
        _output(output, asked.binary.get(output.name, asked.binary_by_default), raw) for output in response.outputs
    ]
    header: dict[str, Any] = {"id": response.id} if response.id else {}
    header |= {"model_name": response.model_name, "model_version": str(response.model_version), "outputs": outputs}
    document = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([document, *raw]), len(document)) if raw else (document, None)


def _split(body: Buffer, header_length: str | None) -> tuple[Buffer, memoryview]:
    """The JSON, and the raw tensors behind it."""
    view = memoryview(body)
    if header_length is None:
        return body, view[len(view) :]
    if not (header_length.isascii() and header_length.isdecimal()) or int(header_length[:20]) > len(view):
        raise InvalidRequest(f"inference header size should be in range (0, {len(view)}), got: {header_length[:40]}")
    length = int(header_length)
    return view[:length], view[length:]


def _loads(document: Buffer) -> object:
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"failed to parse the request JSON buffer: {error}") from error


@dataclass(slots=True)
class _RawTensors:
    """What follows the JSON, taken piece by piece."""

    data: memoryview
    model: str

    def take(self, name: str, size: int) -> memoryview:
        size = max(size, 0)
        if size > len(self.data):
            raise InvalidRequest(
                f"unexpected size for input '{name}', expecting {size - len(self.data)} additional bytes "
                f"for model '{self.model}'"
            )
        piece, self.data = self.data[:size], self.data[size:]
        return piece


def _inputs(fields: Fields, raw: _RawTensors, shared_memory: SharedMemory) -> list[WireTensor]:
    tensors = [_input(_object("inputs", tensor), raw, shared_memory) for tensor in _list(fields, "inputs")]
    if raw.data:
        raise InvalidRequest(f"unexpected additional input data for model '{raw.model}'")
    return tensors


def _input(tensor: Fields, raw: _RawTensors, shared_memory: SharedMemory) -> WireTensor:
    name, datatype, shape, parameters = _name(tensor), _datatype(tensor), _shape(tensor), _parameters(tensor)
    region = span(name, parameters, shared_memory) if parameters else None
    size = _get(parameters, "binary_data_size", int, None)
    if ("data" in tensor) + (size is not None) + (region is not None) != 1:
        raise InvalidRequest(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
            f"'shared_memory_region' in 'parameters'; input '{name}' sets none or several"
        )
    if size is not None:
        return WireTensor(name, datatype, shape, raw.take(name, size))
    return WireTensor(name, datatype, shape, region or _from_json(tensor, name, datatype, shape))


def _from_json(tensor: Fields, name: str, datatype: str, shape: tuple[int, ...]) -> Array:
    try:
        return from_json(tensor["data"], datatype, shape)
    except ValueError as error:
        raise InvalidRequest(f"Unable to parse 'data' of input '{name}': {error}") from error


def _requested_output(output: Fields, shared_memory: SharedMemory) -> RequestedOutput:
    parameters = _parameters(output)
    if not parameters:
        return RequestedOutput(_name(output))
    return RequestedOutput(_name(output), class_count(parameters), span(_name(output), parameters, shared_memory))


def _output(output: OutputTensor, binary: bool, raw: list[bytes]) -> dict[str, Any]:
    """The JSON of an output: with its data, with none if it lies in shared memory, or its raw bytes go to `raw`."""
    tensor: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.array.shape}
    if output.span:
        return tensor
    if binary:
        raw.append(to_raw(output.array))
        return tensor | {"parameters": {"binary_data_size": len(raw[-1])}}
    return tensor | {"data": to_json(output.array)}


def _name(tensor: Fields) -> str:
    return str(_get(tensor, "name", str))


def _datatype(tensor: Fields) -> str:
    datatype = str(_get(tensor, "datatype", str))
    if datatype not in DATATYPES:
        raise InvalidRequest(f"invalid datatype for input {_name(tensor)}: '{datatype}'")
    return datatype


def _shape(tensor: Fields) -> tuple[int, ...]:
    shape = _list(tensor, "shape")
    if not all(type(dim) is int and dim >= 0 for dim in shape):
        raise InvalidRequest(f"Unable to parse 'shape' of input '{_name(tensor)}': expected integers >= 0")
    return tuple(shape)


def _parameters(fields: Fields) -> Fields:
    return _object("parameters", fields.get("parameters", {}))


def _list(fields: Fields, key: str) -> Sequence[Any]:
    values: Sequence[Any] = _get(fields, key, list)
    return values


_REQUIRED = object()
_JSON_NAMES = {str: "a string", int: "an integer", bool: "a boolean", list: "an array", dict: "an object"}


def _get(fields: Fields, key: str, kind: type, default: object = _REQUIRED) -> Any:  # noqa: ANN401 - of `kind`
    value = fields.get(key, default)
    if value is _REQUIRED:
        raise InvalidRequest(f"Unable to parse '{key}': attempt to access non-existing object member '{key}'")
    if type(value) is not kind and value is not default:
        raise InvalidRequest(f"Unable to parse '{key}': expected {_JSON_NAMES[kind]}")
    return value


def _object(key: str, value: object) -> Fields:
    if not isinstance(value, dict):
        raise InvalidRequest(f"Unable to parse '{key}': expected an object")
    return value
