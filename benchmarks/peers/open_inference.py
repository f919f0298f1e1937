"""Calls of the Open Inference Protocol, and their answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import ModelInferResponse

from benchmarks.peers.peer import RAW_GRPC, RAW_HTTP, Call, Way
from benchmarks.peers.workload import Workload

INFER = "/inference.GRPCInferenceService/ModelInfer"


def grpc_call(address: str, workload: Workload) -> Call:
    """The image as a tensor, over gRPC."""
    return Call(f"http://{address}{INFER}", workload.infer_request.SerializeToString(), _grpc_logits)


def raw_http_call(address: str, workload: Workload) -> Call:
    """The image as it is, with Triton's binary extension."""
    url = f"http://{address}/v2/models/{workload.name}/infer"
    return Call(url, workload.image.tobytes(), _http_logits, {"Inference-Header-Content-Length": "0"})


def binary_calls(grpc: str, http: str, workload: Workload) -> dict[Way, Call]:
    """Both, for servers that know the extension."""
    return {RAW_GRPC: grpc_call(grpc, workload), RAW_HTTP: raw_http_call(http, workload)}


def _grpc_logits(body: bytes) -> NDArray[Any]:
    response = ModelInferResponse.FromString(body)
    index = [output.name for output in response.outputs].index("logits")
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[index], np.float32)
    return np.asarray(response.outputs[index].contents.fp32_contents)


def _http_logits(body: bytes) -> NDArray[Any]:
    """JSON with one line's end, then the outputs one after the other."""
    header, length = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    for output in header["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "logits":
            return np.frombuffer(body[length : length + size], np.float32)
        length += size
    raise ValueError("no logits in the answer")
