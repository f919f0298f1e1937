"""The gRPC side: the Open Inference Protocol and the typed image API, translated to the data plane."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from stn_serve.errors import InvalidRequest, ServingError, Unsupported
from stn_serve.inference import Inference, InferResponse
from stn_serve.proto import image_prediction_pb2
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionServicer, add_ImagePredictionServicer_to_server
from stn_serve.tensors import DATATYPES, from_contents, to_raw
from stn_serve.validation import InferRequest, WireTensor
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

MAX_DETAILS = 4096
"""Characters of a status message: gRPC sends it as a header, and clients refuse headers of more than 8 KB."""

Array = NDArray[Any]
Message = Any
"""A message of tritonclient's, which has no types."""
Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")
Method = Callable[[Any, Any, Context], Awaitable[Answer]]


def create_server(inference: Inference, images: ImagePrediction, max_message_bytes: int) -> grpc.aio.Server:
    """A server with both services, on no port yet."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two servers must not share a port by accident.
            ("grpc.so_reuseport", 0),
        ]
    )
    add_GRPCInferenceServiceServicer_to_server(InferenceService(inference), server)
    add_ImagePredictionServicer_to_server(ImagePredictionService(images), server)  # type: ignore[no-untyped-call]
    return server


def _answering(method: Method[Answer]) -> Method[Answer]:
    """Turn what an operation raises into a gRPC status."""

    @wraps(method)
    async def answer(service: object, request: object, context: Context) -> Answer:
        try:
            return await method(service, request, context)
        except ServingError as error:
            await _abort(context, error)
        except Exception:
            logger.exception("%s failed", method.__qualname__)
            await _abort(context, ServingError("internal error; the server's log tells more"))

    return answer


async def _abort(context: Context, error: ServingError) -> NoReturn:
    await context.abort(error.grpc_code, str(error)[:MAX_DETAILS])


def _unsupported(what: str) -> Method[NoReturn]:
    """An operation that this server does not have."""

    async def refuse(_service: object, _request: object, context: Context) -> NoReturn:
        await _abort(context, Unsupported(f"{what} is not supported"))

    return refuse


class InferenceService(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """`inference.GRPCInferenceService`."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    @_answering
    async def ServerLive(self, _: Message, __: Context) -> Message:
        return service_pb2.ServerLiveResponse(live=True)

    @_answering
    async def ServerReady(self, _: Message, __: Context) -> Message:
        return service_pb2.ServerReadyResponse(ready=self._inference.server_ready())

    @_answering
    async def ModelReady(self, request: Message, _: Context) -> Message:
        return service_pb2.ModelReadyResponse(ready=self._inference.model_ready(request.name, request.version))

    @_answering
    async def ServerMetadata(self, _: Message, __: Context) -> Message:
        return self._inference.server_metadata()

    @_answering
    async def ModelMetadata(self, request: Message, _: Context) -> Message:
        return self._inference.model_metadata(request.name, request.version)

    @_answering
    async def ModelConfig(self, request: Message, _: Context) -> Message:
        return self._inference.model_config(request.name, request.version)

    @_answering
    async def ModelStatistics(self, request: Message, _: Context) -> Message:
        return self._inference.model_statistics(request.name, request.version)

    @_answering
    async def RepositoryIndex(self, request: Message, _: Context) -> Message:
        return self._inference.repository_index(request.ready)

    @_answering
    async def ModelInfer(self, request: Message, _: Context) -> Message:
        return _infer_response(await self._inference.infer(_infer_request(request)))

    ModelStreamInfer = _unsupported("ModelStreamInfer")
    RepositoryModelLoad = RepositoryModelUnload = _unsupported("loading and unloading models while serving")
    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _unsupported("shared memory")
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _unsupported("CUDA shared memory")
    TraceSetting = _unsupported("TraceSetting")
    LogSettings = _unsupported("LogSettings")


class ImagePredictionService(ImagePredictionServicer):
    """`stn.v1.ImagePrediction`."""

    def __init__(self, images: ImagePrediction) -> None:
        self._images = images

    @_answering
    async def Predict(
        self, request: image_prediction_pb2.PredictRequest, _: Context
    ) -> image_prediction_pb2.PredictResponse:
        return await self._images.predict(request)


def _infer_request(message: Message) -> InferRequest:
    # Each access of a raw_input_contents entry copies it: once here.
    raw = list(message.raw_input_contents)
    if len(raw) > len(message.inputs):
        raise InvalidRequest(
            f"expected at most {len(message.inputs)} raw_input_contents, one for each input, but got {len(raw)} "
            f"for model '{message.model_name}'"
        )
    for tensor in (*message.inputs, *message.outputs):
        _refuse_extensions(tensor.name, tensor.parameters)
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=[_wire_tensor(tensor, number, raw, message.model_name) for number, tensor in enumerate(message.inputs)],
        outputs=[tensor.name for tensor in message.outputs],
        timeout_us=_timeout_us(message.parameters),
    )


def _wire_tensor(tensor: Message, number: int, raw: Sequence[bytes], model: str) -> WireTensor:
    typed = tensor.HasField("contents")
    if raw and typed:
        raise InvalidRequest(
            "contents field must not be specified when using raw_input_contents "
            f"for '{tensor.name}' for model '{model}'"
        )
    if number >= len(raw) and not typed:
        raise InvalidRequest(f"unable to find data for input tensor '{tensor.name}' for model '{model}' in request.")
    data = _typed_contents(tensor, model) if typed else raw[number]
    return WireTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)


def _typed_contents(tensor: Message, model: str) -> Array | bytes:
    if tensor.datatype not in DATATYPES:
        return b""  # validation refuses the datatype
    try:
        return from_contents(tensor.contents, tensor.datatype)
    except ValueError as error:
        raise InvalidRequest(f"{error} for input '{tensor.name}' for model '{model}'") from error


def _refuse_extensions(tensor: str, parameters: Mapping[str, Message]) -> None:
    for name in ("classification", "shared_memory_region"):
        if name in parameters:
            raise Unsupported(f"parameter '{name}' of tensor '{tensor}' is not supported")


def _timeout_us(parameters: Mapping[str, Message]) -> int:
    if "timeout" not in parameters:
        return 0
    timeout = parameters["timeout"]
    return max(int(timeout.int64_param or timeout.uint64_param), 0)


def _infer_response(response: InferResponse) -> Message:
    message = service_pb2.ModelInferResponse(
        model_name=response.model_name, model_version=str(response.model_version), id=response.id
    )
    for spec, array in response.outputs:
        message.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        message.raw_output_contents.append(to_raw(array))
    return message
