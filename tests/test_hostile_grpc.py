"""gRPC callers that mean no good, or go away: the server lives on and answers their neighbours."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import urllib3
from onnx_models import publish_slow
from served import Served, running
from tritonclient.grpc import service_pb2, service_pb2_grpc

INFER = "/inference.GRPCInferenceService/ModelInfer"


def request(rows: int = 1) -> Any:
    message = service_pb2.ModelInferRequest(model_name="ident", raw_input_contents=[bytes(3136 * rows)])
    message.inputs.add(name="image", datatype="FP32", shape=[rows, 1, 28, 28])
    return message


@pytest.fixture
def channel(server: Served) -> Iterator[grpc.Channel]:
    """After each test, the same process answers somebody else."""
    with grpc.insecure_channel(server.grpc) as channel:
        yield channel
    assert server.process.poll() is None
    with grpc.insecure_channel(server.grpc) as other:
        assert service_pb2_grpc.GRPCInferenceServiceStub(other).ModelInfer(request(), timeout=10).model_name == "ident"


@pytest.mark.parametrize("message", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", bytes(10_000), b"ident"])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, message: bytes) -> None:
    call = channel.unary_unary(INFER, request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError) as refused:
        call(message, timeout=10)
    assert refused.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.NOT_FOUND)


def test_a_message_that_is_too_large_is_refused(channel: grpc.Channel) -> None:
    message = request()
    message.raw_input_contents[0] = bytes(65 * 2**20)
    with pytest.raises(grpc.RpcError) as refused:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=20)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_method_that_does_not_exist_is_refused(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/inference.GRPCInferenceService/Nope", bytes, bytes)
    with pytest.raises(grpc.RpcError) as refused:
        call(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_connections_that_speak_something_else_are_dropped(channel: grpc.Channel, server: Served) -> None:
    assert channel
    host, _, port = server.grpc.partition(":")
    for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 5000):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)


def test_a_stream_of_garbage_answers_each_and_goes_on(channel: grpc.Channel) -> None:
    wrong = request()
    wrong.inputs[0].shape[:] = [2**62, 2**62]
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    answers = list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(), wrong, request()] * 100), timeout=30))
    assert [bool(answer.error_message) for answer in answers] == [True, True, False] * 100


def test_a_stream_whose_caller_goes_away_leaves_the_queue(tmp_path: Path) -> None:
    publish_slow(tmp_path, repeats=40)
    message = service_pb2.ModelInferRequest(model_name="slow", raw_input_contents=[np.ones(1, np.float32).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    with running(tmp_path) as served:
        with grpc.insecure_channel(served.grpc) as channel:
            stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([message] * 20))
            assert not next(stream).error_message
            stream.cancel()
        while cancelled(served) < 10:  # of 20; a few may have been answered before the news came
            time.sleep(0.05)
        assert 'nv_inference_pending_request_count{model="slow",version="1"} 0' in scrape(served)


def scrape(served: Served) -> str:
    return urllib3.request("GET", f"http://{served.metrics}/metrics").data.decode()


def cancelled(served: Served) -> int:
    (count,) = re.findall(r'reason="CANCELED",version="1"} (\d+)', scrape(served))
    return int(count)
