"""Messages of `ModelInfer`: tensors in raw or typed contents, or in shared memory, with their parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from stn_serve.errors import InvalidRequest
from stn_serve.inference import InferResponse
from stn_serve.parameters import class_count, span, urgency
from stn_serve.scheduling import AS_CONFIGURED, Urgency
from stn_serve.shared_memory import SharedMemory, Span
from stn_serve.tensors import DATATYPES, from_contents, to_raw
from stn_serve.validation import InferRequest, RequestedOutput, WireTensor

Array = NDArray[Any]
Message = Any
"""A message of tritonclient's, which has no types."""


def urgency_of(message: Message) -> Urgency:
    """The place in the queue that a `ModelInferRequest` asks for.

    Raises:
        InvalidRequest: by a parameter of another type, or of a name that is reserved.
    """
    return urgency(plain(message.parameters)) if message.parameters else AS_CONFIGURED


def parse(message: Message, urgency: Urgency, shared_memory: SharedMemory) -> InferRequest:
    """A `ModelInferRequest` as a tensor request.

    Raises:
        ServingError: it contradicts itself or the protocol.
    """
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_inputs(message, shared_memory),
        outputs=[_requested_output(tensor, shared_memory) for tensor in message.outputs],
        urgency=urgency,
    )


def serialize(response: InferResponse) -> Message:
    """A `ModelInferResponse`; an output in shared memory has no bytes in it."""
    message = service_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=str(response.model_version), id=response.id
    )
    for output in response.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        message.raw_output_contents.append(b"" if output.span else to_raw(output.array))
    return message


def plain(parameters: Mapping[str, Message]) -> dict[str, object]:
    """Parameters of any of the protocol's messages with the values they hold; None for one that holds none."""
    return {name: _value(parameter) for name, parameter in parameters.items()}


def _value(parameter: Message) -> object:
    chosen = parameter.WhichOneof("parameter_choice")
    return getattr(parameter, chosen) if chosen else None


def _inputs(message: Message, shared_memory: SharedMemory) -> list[WireTensor]:
    # Each access of a raw_input_contents entry copies it: once here.
    raw = list(message.raw_input_contents)
    tensors = []
    used = 0
    for tensor in message.inputs:
        region = span(tensor.name, plain(tensor.parameters), shared_memory) if tensor.parameters else None
        if region is None and used < len(raw) and not tensor.HasField("contents"):
            data: bytes | Array | Span = raw[used]
            used += 1
        else:
            data = region or _typed_contents(tensor, message.model_name, raw)
        tensors.append(WireTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    if used < len(raw):
        raise InvalidRequest(
            f"expected {used} raw_input_contents, one for each input that has no other data, but got {len(raw)} "
            f"for model '{message.model_name}'"
        )
    return tensors


def _typed_contents(tensor: Message, model: str, raw: Sequence[bytes]) -> Array | bytes:
    if not tensor.HasField("contents"):
        raise InvalidRequest(f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.")
    if raw:
        raise InvalidRequest(
            "contents field must not be specified when using raw_input_contents "
            f"for '{tensor.name}' for model '{model}'"
        )
    if tensor.datatype not in DATATYPES:
        return b""  # validation refuses the datatype
    try:
        return from_contents(tensor.contents, tensor.datatype)
    except ValueError as error:
        raise InvalidRequest(
            f"unexpected explicit tensor data for input tensor '{tensor.name}' for model '{model}': {error}"
        ) from error


def _requested_output(tensor: Message, shared_memory: SharedMemory) -> RequestedOutput:
    if not tensor.parameters:
        return RequestedOutput(tensor.name)
    parameters = plain(tensor.parameters)
    return RequestedOutput(tensor.name, class_count(parameters), span(tensor.name, parameters, shared_memory))
