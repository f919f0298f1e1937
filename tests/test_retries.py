from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest

from stn_serve import Client, retries
from stn_serve.errors import DeadlineExceeded, InvalidRequest, ServingError, Unavailable
from stn_serve.prediction import Prediction
from stn_serve.proto.image_prediction_pb2 import PredictRequest, PredictResponse
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionServicer, add_ImagePredictionServicer_to_server
from stn_serve.retries import Attempts

WHITE = np.full((20, 40), 255, np.uint8)
GOOD = b'{"results":[{"prediction":{"classes":[{"label":"bright"}]}}]}'

Serve = Callable[[list[int]], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)


CODES = {
    503: grpc.StatusCode.UNAVAILABLE,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Busy(ImagePredictionServicer):
    """Answers with these HTTP statuses' gRPC codes, one after the other."""

    def __init__(self, statuses: list[int]) -> None:
        self.statuses = statuses

    def Predict(self, _: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:
        status = self.statuses.pop(0)
        if status != 200:
            context.abort(CODES[status], "for now")
        return PredictResponse(results=[{"prediction": {"classes": [{"label": "bright"}]}}])


@contextmanager
def busy_grpc(statuses: list[int]) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_ImagePredictionServicer_to_server(Busy(statuses), server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@contextmanager
def busy_http(statuses: list[int]) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = statuses.pop(0)
            body = GOOD if status == 200 else b'{"error":"for now"}'
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=[busy_grpc, busy_http], ids=["grpc", "http"])
def busy(request: pytest.FixtureRequest) -> Serve:
    serve: Serve = request.param
    return serve


def test_a_server_that_is_busy_for_a_moment_is_asked_again(busy: Serve) -> None:
    statuses = [503, 503, 503, 200]
    with busy(statuses) as address, Client(address) as stn:
        assert stn.predict(WHITE).label == "bright"
    assert not statuses


def test_patience_ends(busy: Serve) -> None:
    statuses = [503] * 9
    with busy(statuses) as address, Client(address, retries=2) as stn, pytest.raises(Unavailable, match="for now"):
        stn.predict(WHITE)
    assert len(statuses) == 6


@pytest.mark.parametrize(("status", "error"), [(400, InvalidRequest), (504, ServingError)])
def test_nothing_else_is_asked_again(busy: Serve, status: int, error: type[ServingError]) -> None:
    statuses = [status, 200]
    with busy(statuses) as address, Client(address) as stn, pytest.raises(error):
        stn.predict(WHITE)
    assert statuses == [200]


def test_the_time_is_that_of_all_attempts() -> None:
    attempts = Attempts(retries=100, timeout_s=0.05)
    busy = Unavailable("for now")
    assert attempts.remaining_s <= 0.05
    busy.retry_after_s = 1.0
    with pytest.raises(Unavailable):
        attempts.pause_s(busy)
    assert Attempts(retries=1, timeout_s=5).pause_s(busy) == 1.0
    assert not issubclass(DeadlineExceeded, Unavailable)


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.1)
    attempts = Attempts(retries=10, timeout_s=1000)
    pauses = [attempts.pause_s(Unavailable("for now")) for _ in range(10)]
    assert 0.05 <= pauses[0] <= 0.15
    assert max(pauses) <= 1.5 * retries.LONGEST_PAUSE_S
    assert min(pauses[5:]) >= 0.5 * retries.LONGEST_PAUSE_S


class PartlyBusy(ImagePredictionServicer):
    """Refuses every other image at first, and more than four at any time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def Predict(self, request: PredictRequest, context: grpc.ServicerContext) -> PredictResponse:
        self.sizes.append(len(request.images))
        if len(request.images) > 4:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        response = PredictResponse()
        for number, image in enumerate(request.images):
            result = response.results.add()
            if number % 2 and len(request.images) == 4:
                result.error.code = grpc.StatusCode.UNAVAILABLE.value[0]
            else:
                result.prediction.classes.add(label=image.decode())
        return response


def test_only_what_was_refused_is_sent_again_in_smaller_requests_where_it_was_too_much() -> None:
    service = PartlyBusy()
    server = grpc.server(ThreadPoolExecutor(1))
    add_ImagePredictionServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}") as stn:
        outcomes = stn.predict_many([str(number).encode() for number in range(8)])
    server.stop(None)
    assert [outcome.label for outcome in outcomes if isinstance(outcome, Prediction)] == list("01234567")
    assert service.sizes == [8, 4, 2, 4, 2]
