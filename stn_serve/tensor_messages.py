"""Arrays as the messages of the Open Inference Protocol, for clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tritonclient.grpc import service_pb2

from stn_serve.errors import InvalidRequest, ServingError
from stn_serve.tensors import DATATYPES, from_raw, to_raw

Array = NDArray[Any]

_DATATYPE_OF = {dtype: datatype for datatype, dtype in DATATYPES.items()}


def infer_request(
    model: str, version: str, inputs: Mapping[str, ArrayLike], outputs: Sequence[str]
) -> service_pb2.ModelInferRequest:
    """Arrays by name as one request.

    Raises:
        InvalidRequest: an array of a type that the protocol cannot carry.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    for name, value in inputs.items():
        array = _little_endian(np.asarray(value))
        datatype = _DATATYPE_OF.get(array.dtype)
        if datatype is None:
            raise InvalidRequest(
                f"input '{name}' is {array.dtype}, expected one of {', '.join(map(str, _DATATYPE_OF))}"
            )
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def arrays(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """The outputs of a response by name, read-only.

    Raises:
        ServingError: bytes that do not fit their shape.
    """
    outputs = {}
    for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
        try:
            outputs[tensor.name] = from_raw(data, tensor.datatype, tuple(tensor.shape))
        except (KeyError, ValueError) as error:
            raise ServingError(f"output '{tensor.name}' of the answer cannot be read: {error}") from error
    return outputs


def _little_endian(array: Array) -> Array:
    if array.dtype.kind == "U":
        return array.astype(object)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
