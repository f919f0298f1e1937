"""The gRPC side: the Open Inference Protocol and the typed image API, translated to the data plane."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial, wraps
from typing import Any, NoReturn, TypeVar

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import aio as reflection
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from stn_serve import calls, grpc_tensors
from stn_serve.access import OPEN, Access
from stn_serve.control import NO_CUDA, Control, check_no_cuda_region, check_repository
from stn_serve.errors import ServingError, Unavailable, Unsupported
from stn_serve.grpc_context import Context
from stn_serve.grpc_health import HealthService
from stn_serve.grpc_refusal import Admission, RoomCheck
from stn_serve.grpc_server import GrpcServer
from stn_serve.grpc_stream import answer_in_order
from stn_serve.inference import Inference
from stn_serve.proto import image_prediction_pb2
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionServicer, add_ImagePredictionServicer_to_server
from stn_serve.vision import ImagePrediction

logger = logging.getLogger(__name__)

PROTOCOL = "grpc"

Message = Any
"""A message of tritonclient's, which has no types."""
SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((service_pb2, "GRPCInferenceService"), (image_prediction_pb2, "ImagePrediction"))
)
INFERENCE_METHODS = ("/inference.GRPCInferenceService/ModelInfer", f"/{SERVICES[1]}/Predict")
INTERNAL_ERROR = ServingError("internal error; the server's log tells more")

Answer = TypeVar("Answer")
Method = Callable[[Any, Any, Context], Awaitable[Answer]]


def create_server(
    inference: Inference, control: Control, images: ImagePrediction, max_message_bytes: int, access: Access = OPEN
) -> GrpcServer:
    """A server with both services, health and reflection, on no port yet."""
    checks = dict.fromkeys(INFERENCE_METHODS, RoomCheck(inference))
    server = GrpcServer(max_message_bytes, inference.pending, Admission(access), checks)
    services = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    add_GRPCInferenceServiceServicer_to_server(InferenceService(inference, control), server)
    add_ImagePredictionServicer_to_server(ImagePredictionService(images, inference), server)  # type: ignore[no-untyped-call]
    add_HealthServicer_to_server(HealthService(inference, SERVICES), server)
    add_ServerReflectionServicer_to_server(reflection.ReflectionServicer(services), server)
    return server


def _answering(method: Method[Answer]) -> Method[Answer]:
    """Turn what an operation raises into a gRPC status."""

    @wraps(method)
    async def answer(service: object, request: object, context: Context) -> Answer:
        with calls.Call(PROTOCOL, method.__name__, context.invocation_metadata, context.time_remaining):
            try:
                return await method(service, request, context)
            except ServingError as error:
                await _abort(context, error)
            except Exception:
                logger.exception("%s failed", method.__qualname__)
                await _abort(context, INTERNAL_ERROR)

    return answer


async def _abort(context: Context, error: ServingError) -> NoReturn:
    calls.fail(error)
    await context.abort(error.grpc_code, str(error))


class InferenceService(GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient has no types
    """`inference.GRPCInferenceService`."""

    def __init__(self, inference: Inference, control: Control) -> None:
        self._inference = inference
        self._control = control

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
        return await self._inference.statistics(request.name, request.version)

    @_answering
    async def RepositoryIndex(self, request: Message, _: Context) -> Message:
        check_repository(request.repository_name)
        return await self._inference.repository_index(request.ready)

    @_answering
    async def ModelInfer(self, request: Message, _: Context) -> Message:
        return await self._infer(request)

    async def ModelStreamInfer(self, requests: AsyncIterator[Message], context: Context) -> AsyncIterator[Message]:
        stopping = self._inference.stopping
        async for answer in answer_in_order(requests, partial(self._stream_infer, context), stopping):
            yield answer
        if stopping.is_set():
            await _abort(context, Unavailable("Server is stopping"))

    @_answering
    async def RepositoryModelLoad(self, request: Message, _: Context) -> Message:
        parameters = grpc_tensors.plain(request.parameters)
        await self._control.load(request.repository_name, request.model_name, parameters)
        return service_pb2.RepositoryModelLoadResponse()

    @_answering
    async def RepositoryModelUnload(self, request: Message, _: Context) -> Message:
        parameters = grpc_tensors.plain(request.parameters)
        await self._control.unload(request.repository_name, request.model_name, parameters)
        return service_pb2.RepositoryModelUnloadResponse()

    @_answering
    async def SystemSharedMemoryStatus(self, request: Message, _: Context) -> Message:
        return self._control.shared_memory_status(request.name)

    @_answering
    async def SystemSharedMemoryRegister(self, request: Message, _: Context) -> Message:
        await self._control.register_shared_memory(request.name, request.key, request.offset, request.byte_size)
        return service_pb2.SystemSharedMemoryRegisterResponse()

    @_answering
    async def SystemSharedMemoryUnregister(self, request: Message, _: Context) -> Message:
        await self._control.unregister_shared_memory(request.name)
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    @_answering
    async def CudaSharedMemoryStatus(self, request: Message, _: Context) -> Message:
        check_no_cuda_region(request.name)
        return service_pb2.CudaSharedMemoryStatusResponse()

    @_answering
    async def CudaSharedMemoryRegister(self, _: Message, __: Context) -> Message:
        raise Unsupported(NO_CUDA)

    @_answering
    async def CudaSharedMemoryUnregister(self, _: Message, __: Context) -> Message:
        return service_pb2.CudaSharedMemoryUnregisterResponse()

    @_answering
    async def TraceSetting(self, request: Message, _: Context) -> Message:
        changes = {name: list(setting.value) for name, setting in request.settings.items()}
        settings = self._control.trace_settings(request.model_name, changes)
        values = {name: service_pb2.TraceSettingResponse.SettingValue(value=value) for name, value in settings.items()}
        return service_pb2.TraceSettingResponse(settings=values)

    @_answering
    async def LogSettings(self, request: Message, _: Context) -> Message:
        await self._control.change_logs(grpc_tensors.plain(request.settings))
        values = {name: _log_setting(value) for name, value in self._control.logs.read().items()}
        return service_pb2.LogSettingsResponse(settings=values)

    async def _infer(self, request: Message) -> Message:
        with (
            self._inference.pending.spend(request.ByteSize()),
            self._inference.request(request.model_name, request.model_version, request.id) as counted,
        ):
            urgency = grpc_tensors.urgency_of(request)
            counted.check_room(urgency, calls.remaining_s())
            asked = grpc_tensors.parse(request, urgency, self._control.shared_memory)
            return grpc_tensors.serialize(await self._inference.infer(counted, asked))

    async def _stream_infer(self, context: Context, request: Message) -> Message:
        """An answer in a stream, errors included; each is the final one of its request."""
        with calls.Call(PROTOCOL, "ModelStreamInfer", context.invocation_metadata):
            try:
                response = await self._infer(request)
            except ServingError as error:
                return _stream_error(request, error)
            except Exception:
                logger.exception("ModelStreamInfer failed")
                return _stream_error(request, INTERNAL_ERROR)
        response.parameters["triton_final_response"].bool_param = True
        return service_pb2.ModelStreamInferResponse(infer_response=response)


class ImagePredictionService(ImagePredictionServicer):
    """`stn.v1.ImagePrediction`."""

    def __init__(self, images: ImagePrediction, inference: Inference) -> None:
        self._images = images
        self._pending = inference.pending
        self._stopping = inference.stopping

    @_answering
    async def Predict(
        self, request: image_prediction_pb2.PredictRequest, _: Context
    ) -> image_prediction_pb2.PredictResponse:
        with self._pending.spend(request.ByteSize()):
            return await self._images.predict(request)

    async def PredictStream(
        self, requests: AsyncIterator[image_prediction_pb2.PredictRequest], context: Context
    ) -> AsyncIterator[image_prediction_pb2.PredictResponse]:
        async for response in answer_in_order(requests, partial(self._respond, context), self._stopping):
            yield response
        if self._stopping.is_set():
            await _abort(context, Unavailable("Server is stopping"))

    async def _respond(
        self, context: Context, request: image_prediction_pb2.PredictRequest
    ) -> image_prediction_pb2.PredictResponse:
        with calls.Call(PROTOCOL, "PredictStream", context.invocation_metadata):
            return await self._images.respond(request, self._pending)


def _stream_error(request: Message, error: ServingError) -> Message:
    calls.fail(error)
    return service_pb2.ModelStreamInferResponse(
        error_message=str(error), infer_response=service_pb2.ModelInferResponse(id=request.id)
    )


def _log_setting(value: bool | int | str) -> Message:
    setting = service_pb2.LogSettingsResponse.SettingValue()
    if isinstance(value, bool):
        setting.bool_param = value
    elif isinstance(value, int):
        setting.uint32_param = value
    else:
        setting.string_param = value
    return setting
