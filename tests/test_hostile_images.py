"""Images that are meant to hurt, through the whole server: answered or refused, and neighbours do not notice."""

from __future__ import annotations

import struct
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image
from served import Served

from stn_serve.proto.image_prediction_pb2 import PredictRequest
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

INVALID, TOO_LARGE = grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]

Ask = Callable[[Sequence[bytes]], list[int]]
"""Images in; for each 0 or the code of its error out. A whole request that is refused gives its one code."""


@pytest.fixture(params=["grpc", "http"])
def ask(request: pytest.FixtureRequest, vision_server: Served) -> Iterator[Ask]:
    if request.param == "http":
        yield lambda images: ask_http(vision_server, images)
        return
    with grpc.insecure_channel(vision_server.grpc) as channel:
        stub = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated
        yield lambda images: ask_grpc(stub, images)


def ask_grpc(stub: ImagePredictionStub, images: Sequence[bytes]) -> list[int]:
    try:
        return [result.error.code for result in stub.Predict(PredictRequest(images=images)).results]
    except grpc.RpcError as error:
        return [error.code().value[0]]


def ask_http(served: Served, images: Sequence[bytes]) -> list[int]:
    body = {"images": [b64encode(image).decode() for image in images]}
    response = httpx.post(f"http://{served.http}/v1/predict", json=body, timeout=60)
    if response.status_code != 200:
        return [{400: INVALID, 413: TOO_LARGE}[response.status_code]]
    return [result.get("error", {"code": 0})["code"] for result in response.json()["results"]]


def encoded(file_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def blank_png(side: int) -> bytes:
    """`side` x `side` white pixels of one bit in a file of a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + b"\xff" * ((side + 7) // 8)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(row * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@contextmanager
def healthy_neighbour(served: Served) -> Iterator[None]:
    """Somebody who asks all the time meanwhile, and must be answered each time."""
    done = threading.Event()
    failures: list[Exception] = []
    image = encoded("PNG")

    def keep_asking() -> None:
        try:
            with httpx.Client(timeout=60) as client:
                while not done.is_set():
                    client.post(f"http://{served.http}/v1/predict", content=image).raise_for_status()
        except httpx.HTTPError as error:
            failures.append(error)

    neighbour = threading.Thread(target=keep_asking)
    neighbour.start()
    try:
        yield
    finally:
        done.set()
        neighbour.join()
    assert not failures


@pytest.mark.parametrize(
    ("file_format", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {})]
)
def test_images_cut_at_any_byte(ask: Ask, vision_server: Served, file_format: str, options: dict[str, Any]) -> None:
    whole = encoded(file_format, **options)
    cuts = [whole[:length] for length in range(len(whole) + 1)]
    with healthy_neighbour(vision_server):
        codes = [code for start in range(0, len(cuts), 500) for code in ask(cuts[start : start + 500])]
    assert len(codes) == len(cuts)
    assert set(codes) == {0, INVALID}
    assert codes[-1] == 0
    assert set(codes[: len(cuts) // 2]) == {INVALID}


def test_a_gigapixel_is_refused_by_its_header(ask: Ask) -> None:
    assert ask([blank_png(31_623)]) == [TOO_LARGE]
    assert ask([blank_png(8_000), encoded("PNG")]) == [TOO_LARGE, 0]


def test_small_files_may_not_add_up_to_hours_of_decoding(ask: Ask, vision_server: Served) -> None:
    large = blank_png(7_071)
    assert len(large) < 20_000
    with healthy_neighbour(vision_server):
        assert ask([large]) == [0]
        assert ask([large] * 1000) == [TOO_LARGE]
        assert ask([large] * 5) == [TOO_LARGE]
    assert ask([encoded("PNG")] * 1025) == [TOO_LARGE]


def test_too_much_work_at_once_is_refused_for_now(vision_server: Served) -> None:
    """Many callers, each within the bounds of a request."""
    codes: list[int] = []
    image = blank_png(7_000)

    def predict(stub: ImagePredictionStub) -> None:
        codes.extend(ask_grpc(stub, [image] * 4))

    with grpc.insecure_channel(vision_server.grpc) as channel:
        stub = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated
        callers = [threading.Thread(target=predict, args=(stub,)) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert set(codes) == {0, grpc.StatusCode.UNAVAILABLE.value[0]}
        assert ask_grpc(stub, [image]) == [0]
