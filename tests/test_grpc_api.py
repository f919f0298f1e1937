from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from served import Served
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

UNKNOWN_ID = "[request id: <id_unknown>] "
WRONG_SHAPE = "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], "
Change = Callable[[Any], object]


@pytest.fixture
def client(server: Served) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        yield client


@pytest.fixture
def stub(server: Served) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor_input(
    array: np.ndarray[Any, Any], name: str = "image", datatype: str = "FP32"
) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def raw_request(rows: int = 1) -> Any:
    image = np.arange(rows * 784, dtype=np.float32)
    request = service_pb2.ModelInferRequest(model_name="ident", raw_input_contents=[image.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 1, 28, 28])
    return request


def test_server_and_model_are_live_and_ready(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("ident")
    assert client.is_model_ready("ident", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("broken")


def test_metadata_and_config(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert client.get_server_metadata().name == "stn-serve"
    metadata = client.get_model_metadata("ident", as_json=True)
    assert metadata == {
        "name": "ident",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "28", "28"]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": ["-1", "10"]}],
    }
    config = client.get_model_config("ident").config
    assert (config.name, config.backend, config.max_batch_size) == ("ident", "onnxruntime", 8)


def test_the_index_says_why_a_model_is_not_served(client: tritonclient.grpc.InferenceServerClient) -> None:
    models = {model.name: model for model in client.get_model_repository_index().models}
    assert (models["ident"].version, models["ident"].state) == ("1", "READY")
    assert models["broken"].state == "UNAVAILABLE"
    assert 'no field named "max_batch"' in models["broken"].reason


def test_infer_with_the_sync_client(client: tritonclient.grpc.InferenceServerClient) -> None:
    image = np.random.default_rng(0).standard_normal((3, 1, 28, 28), np.float32)
    result = client.infer("ident", [tensor_input(image)], request_id="7")
    np.testing.assert_array_equal(result.as_numpy("logits"), image.reshape(3, -1)[:, :10])
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("ident", "1", "7")


async def infer_with_aio(address: str) -> np.ndarray[Any, Any]:
    async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
        image = np.full((1, 8, 8, 1), 255, np.uint8)
        output = tritonclient.grpc.InferRequestedOutput("theta")
        result = await client.infer("vision", [tensor_input(image, datatype="UINT8")], outputs=[output])
        assert result.as_numpy("logits") is None
        theta: np.ndarray[Any, Any] = result.as_numpy("theta")
        return theta


def test_infer_with_the_aio_client_computes_what_is_asked_for(server: Served) -> None:
    assert asyncio.run(infer_with_aio(server.grpc)).shape == (1, 1, 2, 3)


def test_statistics_count_requests_rows_and_phases(client: tritonclient.grpc.InferenceServerClient) -> None:
    before = client.get_inference_statistics("ident").model_stats[0]
    client.infer("ident", [tensor_input(np.zeros((5, 1, 28, 28), np.float32))])
    after = client.get_inference_statistics("ident", "1").model_stats[0]
    assert after.inference_count - before.inference_count == 5
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    phases = after.inference_stats
    parts = (phases.queue, phases.compute_input, phases.compute_infer, phases.compute_output)
    assert all(part.count == phases.success.count for part in parts)
    assert sum(part.ns for part in parts) <= phases.success.ns
    assert {batch.batch_size for batch in after.batch_stats} >= {5}
    assert len(client.get_inference_statistics().model_stats) == 2


@pytest.mark.parametrize("field", ["fp32_contents", "raw"])
def test_typed_contents_and_raw_contents_are_equal(stub: Any, field: str) -> None:
    request = raw_request()
    if field != "raw":
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend(range(784))
    response = stub.ModelInfer(request)
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            lambda r: setattr(r.inputs[0], "name", "w"),
            "INVALID_ARGUMENT",
            "unexpected inference input 'w' for model 'ident'",
        ),
        (
            lambda r: setattr(r.inputs[0], "datatype", "INT32"),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "inference input 'image' data-type is 'INT32', but model 'ident' expects 'FP32'",
        ),
        (
            lambda r: setattr(r.inputs[0], "datatype", ""),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "inference input 'image' data-type is '<invalid>', but model 'ident' expects 'FP32'",
        ),
        (
            lambda r: r.inputs[0].shape.__setitem__(3, 27),
            "INVALID_ARGUMENT",
            UNKNOWN_ID
            + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got [1,1,28,27]. "
            "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension",
        ),
        (
            lambda r: r.inputs[0].shape.pop(0),
            "INVALID_ARGUMENT",
            UNKNOWN_ID
            + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got [1,28,28]. NOTE",
        ),
        (
            lambda r: r.inputs[0].shape.__setitem__(0, 9),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "inference request batch-size must be <= 8 for 'ident'",
        ),
        (lambda r: r.inputs[0].shape.__setitem__(0, 0), "INVALID_ARGUMENT", UNKNOWN_ID + "unexpected shape for input"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "INVALID_ARGUMENT", UNKNOWN_ID + "unexpected shape for input"),
        (lambda r: setattr(r, "model_name", "nope"), "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        (lambda r: setattr(r, "model_name", ""), "NOT_FOUND", "Request for unknown model: '' is not found"),
        (
            lambda r: setattr(r, "model_name", "broken"),
            "NOT_FOUND",
            "Request for unknown model: 'broken' has no available versions",
        ),
        (
            lambda r: setattr(r, "model_version", "9"),
            "NOT_FOUND",
            "Request for unknown model: 'ident' version 9 is not found",
        ),
        (
            lambda r: setattr(r, "model_version", "x"),
            "INVALID_ARGUMENT",
            "failed to get model version from specified version string 'x'",
        ),
        (lambda r: r.outputs.add(name="zz"), "INVALID_ARGUMENT", "unexpected inference output 'zz' for model 'ident'"),
        (
            lambda r: r.raw_input_contents.__setitem__(0, bytes(3132)),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 3132",
        ),
        (
            lambda r: r.raw_input_contents.pop(),
            "INVALID_ARGUMENT",
            "unable to find data for input tensor 'image' for model 'ident' in request.",
        ),
        (
            lambda r: r.raw_input_contents.append(b"surplus"),
            "INVALID_ARGUMENT",
            "expected 1 raw_input_contents, one for each input that has no other data, but got 2 for model 'ident'",
        ),
        (
            lambda r: (r.raw_input_contents.pop(), r.inputs[0].contents.fp32_contents.extend([0.0] * 10)),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 40",
        ),
        (
            lambda r: (r.raw_input_contents.pop(), r.inputs[0].contents.int_contents.extend([0] * 784)),
            "INVALID_ARGUMENT",
            "unexpected explicit tensor data for input tensor 'image' for model 'ident': contents of FP32 are in ",
        ),
        (
            lambda r: r.inputs[0].contents.fp32_contents.append(1.0),
            "INVALID_ARGUMENT",
            "contents field must not be specified when using raw_input_contents for 'image' for model 'ident'",
        ),
        (
            lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(r.raw_input_contents[0])),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "input 'image' already exists in request",
        ),
        (
            lambda r: (r.inputs.pop(), r.raw_input_contents.pop()),
            "INVALID_ARGUMENT",
            UNKNOWN_ID + "expected 1 inputs but got 0 inputs for model 'ident'. Got input(s) [], but missing "
            "required input(s) ['image']. Please provide all required input(s).",
        ),
        (
            lambda r: r.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "zz"),
            "INVALID_ARGUMENT",
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter",
        ),
    ],
)
def test_a_wrong_request_is_refused_as_triton_refuses_it(stub: Any, change: Change, code: str, message: str) -> None:
    request = raw_request()
    change(request)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request)
    assert refused.value.code().name == code
    assert (refused.value.details() or "").startswith(message)
    assert stub.ModelInfer(raw_request()).model_name == "ident"


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (lambda c: c.get_model_metadata("nope"), "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        (lambda c: c.get_model_config("nope"), "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        (
            lambda c: c.get_inference_statistics("nope"),
            "INVALID_ARGUMENT",
            "requested model 'nope' is not available",
        ),
        (
            lambda c: c.load_model("ident"),
            "UNIMPLEMENTED",
            "explicit model load / unload is not allowed; the server's operator allows it with a model control mode",
        ),
        (
            lambda c: c.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
            "UNIMPLEMENTED",
            "tracing is not supported: trace_level stays OFF",
        ),
        (
            lambda c: c.get_system_shared_memory_status(),
            "UNIMPLEMENTED",
            "shared memory is not allowed; the server's operator allows it with a flag",
        ),
        (
            lambda c: c.register_cuda_shared_memory("x", b"aGFuZGxl", 0, 8),
            "UNIMPLEMENTED",
            "CUDA shared memory is not supported",
        ),
        (lambda c: c.get_cuda_shared_memory_status("x"), "NOT_FOUND", "Unable to find cuda shared memory region: 'x'"),
    ],
)
def test_other_operations_refuse_in_words(
    client: tritonclient.grpc.InferenceServerClient, call: Change, code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        call(client)
    assert refused.value.status() == f"StatusCode.{code}"
    assert refused.value.message() == message


def test_a_status_message_is_short_whatever_the_caller_sends(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="n" * 100_000))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
