"""Triton's own clients, streams, shared memory and health."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import tritonclient.utils.shared_memory
from cases import Case
from cases_grpc import ROW, TOP_3, UNKNOWN_ID, ident_request, output, parameter
from grpc_health.v1 import health_pb2, health_pb2_grpc
from targets import Refused, Target, grpc_answer, tensors
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

IMAGES = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
FIRST_TEN = IMAGES.reshape(3, -1)[:, :10].tolist()


def _input(module: Any) -> Any:
    tensor = module.InferInput("image", [3, 1, 28, 28], "FP32")
    tensor.set_data_from_numpy(IMAGES)
    return tensor


def _logits(result: Any) -> Any:
    return result.as_numpy("logits").tolist()


def grpc_client(target: Target) -> Any:
    with tritonclient.grpc.InferenceServerClient(target.grpc) as client:
        return _logits(client.infer("ident", [_input(tritonclient.grpc)], compression_algorithm="gzip"))


def http_client(target: Target) -> Any:
    with tritonclient.http.InferenceServerClient(target.http) as client:
        compressed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
        return _logits(client.infer("ident", [_input(tritonclient.http)], **compressed))


def http_client_classes(target: Target) -> Any:
    with tritonclient.http.InferenceServerClient(target.http) as client:
        wanted = tritonclient.http.InferRequestedOutput("logits", class_count=1)
        result = client.infer("ident", [_input(tritonclient.http)], outputs=[wanted])
        return [row[0].split(b":")[2].decode() for row in result.as_numpy("logits")]


def grpc_aio_client(target: Target) -> Any:
    async def ask() -> Any:
        async with tritonclient.grpc.aio.InferenceServerClient(target.grpc) as client:
            calls = (client.infer("ident", [_input(tritonclient.grpc)]) for _ in range(4))
            return [_logits(result) for result in await asyncio.gather(*calls)]

    return asyncio.run(ask())


def http_aio_client(target: Target) -> Any:
    async def ask() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(target.http) as client:
            calls = (client.infer("ident", [_input(tritonclient.http)]) for _ in range(4))
            return [_logits(result) for result in await asyncio.gather(*calls)]

    return asyncio.run(ask())


def client_error(target: Target) -> Any:
    with tritonclient.grpc.InferenceServerClient(target.grpc) as client:
        try:
            return client.infer("nope", [_input(tritonclient.grpc)])
        except InferenceServerException as error:
            return error.status(), error.message()


def statistics(target: Target) -> Any:
    """What three requests of one, two and four rows add to the statistics."""
    before = _statistics(target)
    for rows in (1, 2, 4):
        target.stub.ModelInfer(ident_request(rows))
    added: dict[str, int] = {}
    deadline = time.monotonic() + 5
    while added.get("rows") != 7 and time.monotonic() < deadline:  # Triton counts after it has answered
        after = _statistics(target)
        added = {name: after[name] - before[name] for name in after}
    return added


def _statistics(target: Target) -> dict[str, int]:
    model = target.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="ident", version="1")).model_stats[0]
    stats = model.inference_stats
    phases = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    counts = {phase: getattr(stats, phase).count for phase in phases}
    return {"rows": model.inference_count, "executions": model.execution_count, **counts}


def stream(target: Target) -> Any:
    """Answers of a stream: good and bad requests in turn."""
    wrong, unknown, classes, final = (ident_request() for _ in range(4))
    wrong.inputs[0].name = "w"
    unknown.model_name = "nope"
    output(classes, classification={"int64_param": 3})
    parameter(final, "triton_enable_empty_final_response", bool_param=True)
    requests = [ident_request(), wrong, classes, unknown, final, ident_request(2)]
    for number, request in enumerate(requests):
        request.id = str(number)
    return grpc_answer(lambda: [_streamed(answer) for answer in target.stub.ModelStreamInfer(iter(requests))])


def _streamed(answer: Any) -> tuple[str, str, Any]:
    response = answer.infer_response
    if answer.error_message:
        return response.id, answer.error_message, None
    final = response.parameters["triton_final_response"].bool_param
    return response.id, "final" if final else "", tensors(response)[0][2:] if response.id == "5" else tensors(response)


TWO_ROWS = ([2, 10], [float(row * 784 + column) for row in range(2) for column in range(10)])
STREAMED = [
    ("0", "final", [ROW]),
    ("1", "unexpected inference input 'w' for model 'ident'", None),
    ("2", "final", [TOP_3]),
    ("3", "Request for unknown model: 'nope' is not found", None),
    ("4", "final", [ROW]),
    ("5", "final", TWO_ROWS),
]


def client_stream(target: Target) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(target.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or _logits(result)))
        for number in range(20):
            client.async_stream_infer("ident", [_input(tritonclient.grpc)], request_id=str(number))
        client.stop_stream()
    return [answers.get(timeout=10) for _ in range(20)]


@contextmanager
def memory(target: Target) -> Iterator[Any]:
    """Shared memory of 8192 bytes that holds the numbers from 0, known to the server as `numbers`."""
    shared = tritonclient.utils.shared_memory
    region = shared.create_shared_memory_region("numbers", f"/stn_{target.name}", 8192)
    with tritonclient.grpc.InferenceServerClient(target.grpc) as client:
        try:
            shared.set_shared_memory_region(region, [np.arange(2048, dtype=np.float32)])
            client.register_system_shared_memory("numbers", f"/stn_{target.name}", 8192)
            yield client, region
        finally:
            _unregister(client)
            shared.destroy_shared_memory_region(region)


def _unregister(client: Any, patience_s: float = 10.0) -> None:
    """Triton answers a refused request a moment before it lets go of the memory that the request named."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            client.unregister_system_shared_memory("numbers")
        except InferenceServerException as error:
            if "currently in use" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def shared_memory(target: Target, module: Any, address: str) -> Any:
    """Input and output in shared memory: what the output's place holds afterwards."""
    with memory(target) as (_, region), module.InferenceServerClient(address) as client:
        image = module.InferInput("image", [1, 1, 28, 28], "FP32")
        image.set_shared_memory("numbers", 3136, offset=4)
        logits = module.InferRequestedOutput("logits")
        logits.set_shared_memory("numbers", 64, offset=4096)
        client.infer("ident", [image], outputs=[logits])
        written = tritonclient.utils.shared_memory.get_contents_as_numpy(region, np.float32, [16], offset=4096)
        return written[:11].tolist()


WRITTEN = [float(value) for value in (*range(1, 11), 1034)]


def span(size: int, offset: int, region: str = "numbers", **changes: int) -> Any:
    """An input of `size` bytes at `offset` in shared memory; or the output, where that is changed."""

    def observe(target: Target) -> Any:
        request = ident_request()
        del request.raw_input_contents[:]
        place = {"shared_memory_byte_size": size, "shared_memory_offset": offset}
        parameter(request.inputs[0], "shared_memory_region", string_param=region)
        for name, value in place.items():
            parameter(request.inputs[0], name, int64_param=value)
        if changes:
            output(request, shared_memory_region={"string_param": "numbers"})
            for name, value in changes.items():
                parameter(request.outputs[0], name, int64_param=value)
        with memory(target):
            return grpc_answer(lambda: tensors(target.stub.ModelInfer(request)))

    return observe


def register(key: str, offset: int, size: int, name: str = "more") -> Any:
    def observe(target: Target) -> Any:
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=name, key=key or f"/stn_{target.name}", offset=offset, byte_size=size
        )
        with memory(target):
            return grpc_answer(lambda: str(target.stub.SystemSharedMemoryRegister(request)))

    return observe


def region_status(target: Target) -> Any:
    with memory(target):
        response = target.stub.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest())
        return [(name, region.offset, region.byte_size) for name, region in response.regions.items()]


def health(service: str) -> Any:
    def observe(target: Target) -> Any:
        stub = health_pb2_grpc.HealthStub(target.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        return grpc_answer(lambda: health_pb2.HealthCheckResponse.ServingStatus.Name(stub.Check(request).status))

    return observe


def watch(target: Target) -> Any:
    stub = health_pb2_grpc.HealthStub(target.channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(service="ident"))
    answer = grpc_answer(lambda: health_pb2.HealthCheckResponse.ServingStatus.Name(next(call).status))
    call.cancel()
    return answer


def unload_and_load(target: Target) -> Any:
    """Whether a model is ready: unloaded, loaded again."""
    with tritonclient.http.InferenceServerClient(target.http) as client:
        seen = []
        for change in (client.unload_model, client.load_model):
            change("half")
            seen.append(client.is_model_ready("half"))
        return seen


BEYOND = "Invalid offset + byte size for shared memory region: 'numbers'"
CASES = [
    Case("grpc client: compressed", grpc_client, FIRST_TEN),
    Case(
        "grpc client: error", client_error, ("StatusCode.NOT_FOUND", "Request for unknown model: 'nope' is not found")
    ),
    Case("grpc asyncio client", grpc_aio_client, [FIRST_TEN] * 4),
    Case("grpc client: stream", client_stream, [FIRST_TEN] * 20),
    Case("http client: compressed", http_client, FIRST_TEN),
    Case("http client: classes", http_client_classes, [f"digit_{np.argmax(row)}" for row in FIRST_TEN]),
    Case("http asyncio client", http_aio_client, [FIRST_TEN] * 4),
    Case("grpc stream: good and bad requests", stream, STREAMED),
    Case(
        "statistics",
        statistics,
        {
            "rows": 7,
            "executions": 3,
            **dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 3),
        },
    ),
    Case("grpc shared memory", lambda t: shared_memory(t, tritonclient.grpc, t.grpc), WRITTEN),
    Case("http shared memory", lambda t: shared_memory(t, tritonclient.http, t.http), WRITTEN),
    Case("shared memory: status", region_status, [("numbers", 0, 8192)]),
    Case("shared memory: input only", span(3136, 0), [ROW]),
    Case(
        "shared memory: unknown region",
        span(3136, 0, "no"),
        Refused("NOT_FOUND", "Unable to find shared memory region: 'no'"),
    ),
    Case("shared memory: input beyond its end", span(3136, 8190), Refused("INVALID_ARGUMENT", BEYOND)),
    Case(
        "shared memory: negative offset",
        span(3136, -8),
        Refused("INVALID_ARGUMENT", "Invalid offset for shared memory region: 'numbers'"),
    ),
    Case(
        "shared memory: too few bytes",
        span(3132, 0),
        Refused(
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 3132",
        ),
    ),
    Case(
        "shared memory: output too small",
        span(3136, 0, shared_memory_byte_size=39),
        Refused(
            "INTERNAL",
            "shared memory size specified with the request for output 'logits' (39 bytes)",
        ),
    ),
    Case(
        "shared memory: output beyond its end",
        span(3136, 0, shared_memory_byte_size=40, shared_memory_offset=8190),
        Refused("INVALID_ARGUMENT", BEYOND),
    ),
    Case(
        "shared memory: output without a size",
        span(3136, 0, shared_memory_offset=8),
        Refused(
            "INVALID_ARGUMENT",
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter",
        ),
    ),
    Case(
        "shared memory: output as classes",
        span(3136, 0, shared_memory_byte_size=40, classification=3),
        Refused("INVALID_ARGUMENT", "output can't set both 'shared_memory_region' and 'classification'"),
    ),
    Case(
        "shared memory: a name twice",
        register("", 0, 8, "numbers"),
        Refused("ALREADY_EXISTS", "shared memory region 'numbers' already in manager"),
    ),
    Case(
        "shared memory: larger than it is",
        register("", 4096, 8192),
        Refused("INTERNAL", "Invalid shared memory region: '"),
    ),
    Case("shared memory: nothing", register("", 0, 0), Refused("INTERNAL", "Invalid shared memory region: '")),
    Case(
        "shared memory: not there",
        register("/nope", 0, 8),
        Refused("INTERNAL", "Unable to open shared memory region: '/nope'"),
    ),
    Case("unload and load", unload_and_load, [False, True]),
    Case("health: server", health(""), "SERVING"),
    Case("health: service", health("inference.GRPCInferenceService"), "SERVING"),
    Case("health: model", health("ident"), "SERVING"),
    Case("health: unknown", health("nope"), "SERVING"),
    Case("health: watched", watch, Refused("UNIMPLEMENTED", "")),
]
