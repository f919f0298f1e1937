"""What calls leave to the garbage collector of a server: `python leftovers.py REPOSITORY`, a process of its own.

Serves `ident`, `vision` and `slow` of a repository, asks them in several ways, and prints as JSON what is left of each
way: how many objects of which of our classes are still there when nobody needs them, with the collector switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import queue
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
import urllib3
import uvloop
from grpc import RpcError, insecure_channel
from h2.config import H2Configuration
from h2.connection import H2Connection
from PIL import Image
from tritonclient.grpc.service_pb2 import ModelInferRequest
from tritonclient.utils import InferenceServerException

from stn_serve.guard import Guard
from stn_serve.listening import address, bind
from stn_serve.model_server import ModelServer
from stn_serve.proto.image_prediction_pb2 import PredictRequest
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub
from stn_serve.settings import ServerSettings

CALLS = 20
PATIENCE_S = 5.0
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
"""Clients of one process share connections otherwise."""

Call = Callable[[], object]


def ours() -> Counter[str]:
    """Objects of our classes, and tasks."""
    kinds = (type(each) for each in gc.get_objects())
    return Counter(
        kind.__qualname__ for kind in kinds if str(kind.__module__).partition(".")[0] in ("stn_serve", "_asyncio")
    )


async def left_by(call: Call) -> dict[str, int]:
    """What is there after some calls that was not there before them."""
    await asyncio.to_thread(call)  # what is made once, for the first
    before = await at_rest()
    await asyncio.to_thread(lambda: [call() for _ in range(CALLS)])
    for _ in range(round(PATIENCE_S / 0.05)):
        left = {kind: count for kind, count in (ours() - before).items() if count >= CALLS // 2}
        if not left:
            break
        await asyncio.sleep(0.05)
    return left


async def at_rest() -> Counter[str]:
    """What there is once nothing comes or goes."""
    before = ours()
    for _ in range(round(PATIENCE_S / 0.1)):
        await asyncio.sleep(0.1)
        gc.collect()
        now = ours()
        if now == before:
            break
        before = now
    return before


def reset_at_once(address: str, body: bytes) -> None:
    """A connection of its own, a whole gRPC call, and at the same moment that nobody wants its answer."""
    host, _, port = address.partition(":")
    peer = H2Connection(H2Configuration(header_encoding="utf-8"))
    peer.initiate_connection()
    path = "/inference.GRPCInferenceService/ModelInfer"
    peer.send_headers(
        1,
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ],
    )
    peer.send_data(1, bytes(1) + len(body).to_bytes(4, "big") + body, end_stream=True)
    peer.reset_stream(1)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(peer.data_to_send())
        connection.recv(100)


def ways_to_ask(grpc_address: str, http_address: str, closing: contextlib.ExitStack) -> dict[str, Call]:
    """By name."""
    grpc = closing.enter_context(tritonclient.grpc.InferenceServerClient(grpc_address))
    http = closing.enter_context(tritonclient.http.InferenceServerClient(http_address))
    pool = closing.enter_context(urllib3.PoolManager())
    channel = closing.enter_context(insecure_channel(grpc_address))
    images = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]
    raw: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    file = BytesIO()
    Image.new("L", (48, 48)).save(file, "PNG")

    large = ModelInferRequest(model_name="none", raw_input_contents=[bytes(2**18)])

    def tensor(kind: type, shape: list[int], name: str = "image") -> object:
        made = kind(name, shape, "FP32")
        made.set_data_from_numpy(np.zeros(shape, np.float32))
        return made

    def failing(call: Call) -> Call:
        def ask() -> None:
            with contextlib.suppress(InferenceServerException, RpcError):
                call()
                raise AssertionError("expected an error")

        return ask

    right, wrong = tensor(tritonclient.grpc.InferInput, [1, 1, 28, 28]), tensor(tritonclient.grpc.InferInput, [3])
    slow, over_http = (
        tensor(tritonclient.grpc.InferInput, [1], "x"),
        tensor(tritonclient.http.InferInput, [1, 1, 28, 28]),
    )

    def post(path: str, body: bytes) -> int:
        return pool.request("POST", f"http://{http_address}/{path}", body=body).status

    def cancel_stream() -> None:
        asked = iter([PredictRequest(model_name="vision", images=[file.getvalue()])] * 3)
        answers = images.PredictStream(asked)
        next(answers)
        answers.cancel()

    def hang_up() -> None:
        body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}'
        host, _, port = http_address.partition(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            connection.sendall(body)
            time.sleep(0.02)

    def call_once() -> None:
        with tritonclient.grpc.InferenceServerClient(grpc_address, channel_args=OWN_CONNECTION) as other:
            other.infer("ident", [right])

    def stream_tensors() -> None:
        answers: queue.Queue[object] = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(grpc_address, channel_args=OWN_CONNECTION) as other:
            other.start_stream(lambda result, error: answers.put(error or result))
            other.async_stream_infer("ident", [right])
            other.async_stream_infer("ident", [wrong])
            answers.get(timeout=10), answers.get(timeout=10)
            other.stop_stream()

    return {
        "gRPC": lambda: grpc.infer("ident", [right]),
        "gRPC with a deadline": lambda: grpc.infer("ident", [right], client_timeout=60),
        "gRPC, wrong": failing(lambda: grpc.infer("ident", [wrong], client_timeout=60)),
        "gRPC, late": failing(lambda: grpc.infer("slow", [slow], client_timeout=0.01)),
        "HTTP": lambda: http.infer("ident", [over_http]),
        "gRPC, malformed": failing(lambda: raw(b"\xff")),
        "gRPC, refused before it is read": failing(lambda: grpc.get_server_metadata()),
        "gRPC, refused for its beginning": failing(lambda: raw(large.SerializeToString())),
        "HTTP, wrong": lambda: post("v2/models/ident/infer", b"{"),
        "HTTP, nowhere": lambda: post("v3", b""),
        "image over gRPC": lambda: images.Predict(PredictRequest(model_name="vision", images=[file.getvalue()])),
        "image over HTTP": lambda: post("v1/models/vision/predict", file.getvalue()),
        "images, one of them none": lambda: images.Predict(
            PredictRequest(model_name="vision", images=[file.getvalue(), b"none"])
        ),
        "gRPC, given up as soon as it is asked": lambda: reset_at_once(grpc_address, b""),
        "no image": failing(lambda: images.Predict(PredictRequest(model_name="vision", images=[b"none"]))),
        "a connection of its own": call_once,
        "tensors in a stream": stream_tensors,
        "compressed": lambda: grpc.infer("ident", [right], compression_algorithm="gzip"),
        "a stream, cancelled": cancel_stream,
        "a caller that hangs up": hang_up,
        "a body in pieces": lambda: pool.request(
            "POST", f"http://{http_address}/v1/models/vision/predict", body=iter([file.getvalue()])
        ),
        "images, one after another": lambda: list(
            images.PredictStream(iter([PredictRequest(model_name="vision", images=[file.getvalue()])]))
        ),
    }


async def main(repository: Path) -> None:
    """Serve, ask, and tell."""
    os.environ["TOKEN"] = "secret-of-this-test"
    settings = ServerSettings(model_repository=repository, tokens=("metadata=env:TOKEN",))
    server = await ModelServer.load(settings, Guard.of(settings))
    with bind("127.0.0.1", 0) as http, bind("127.0.0.1", 0) as grpc, contextlib.ExitStack() as closing:
        await server.open(http, grpc)
        ways = ways_to_ask(address(grpc), address(http), closing)
        gc.disable()
        sys.stdout.write(json.dumps({name: await left_by(call) for name, call in ways.items()}))
    await server.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
