"""A server under test, and ways to speak to it that hide nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import urllib3
from grpc import Channel, RpcError, insecure_channel
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

NOT_JSON = "not JSON"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Refused:
    """An error; of an expected one, `message` is how it begins."""

    status: int | str
    message: str = ""


@dataclass
class Target:
    """A running server; addresses are `host:port`."""

    name: str
    grpc: str
    http: str
    metrics: str

    @cached_property
    def channel(self) -> Channel:
        return insecure_channel(self.grpc)

    @cached_property
    def stub(self) -> Any:
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    @cached_property
    def pool(self) -> urllib3.PoolManager:
        return urllib3.PoolManager(retries=False)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """One HTTP request, its answer as it comes."""
        return self.pool.request(method, f"http://{self.http}{path}", body=body, headers=headers, decode_content=False)

    def ask(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Any:
        """One HTTP request; the JSON of the answer, a status where it has no body, or what was refused."""
        content = body if isinstance(body, bytes | None) else orjson.dumps(body)
        response = self.request(method, path, content, headers)
        if response.status != 200:
            return Refused(response.status, orjson.loads(response.data)["error"] if response.data else "")
        try:
            return orjson.loads(response.data) if response.data else 200
        except orjson.JSONDecodeError:
            return NOT_JSON

    def close(self) -> None:
        self.channel.close()
        self.pool.clear()


def grpc_answer(call: Callable[[], Any]) -> Any:
    """What a gRPC call answers, or what was refused."""
    try:
        return call()
    except RpcError as error:
        return Refused(error.code().name, error.details() or "")


Tensor = tuple[str, str, list[int], list[Any]]
"""Name, datatype, shape and elements of an output."""


def tensors(response: Any) -> list[Tensor]:
    """The outputs of a ModelInferResponse."""
    return [
        (output.name, output.datatype, list(output.shape), elements(output.datatype, raw))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def elements(datatype: str, raw: bytes) -> list[Any]:
    """Raw bytes as numbers or strings."""
    if datatype == "BYTES":
        return [element.decode() for element in deserialize_bytes_tensor(raw)]
    values: list[Any] = np.frombuffer(raw, triton_to_np_dtype(datatype)).tolist()
    return values
