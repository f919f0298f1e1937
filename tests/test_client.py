from __future__ import annotations

import http.server
import io
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx_models import publish_vision
from PIL import Image
from served import Served, running

from stn_serve import Client, Prediction, batches
from stn_serve.errors import DeadlineExceeded, InvalidRequest, NotFound, ServingError, Unavailable, Unsupported
from stn_serve.image_sources import ImageSource

WHITE, BLACK = np.full((20, 40), 255, np.uint8), np.zeros((20, 40), np.uint8)


@pytest.fixture(params=["grpc", "http"])
def address(request: pytest.FixtureRequest, vision_server: Served) -> str:
    return address_of(vision_server, request.param)


@pytest.fixture(params=["grpc", "http"])
def address_of_two(request: pytest.FixtureRequest, server: Served) -> str:
    return address_of(server, request.param)


def address_of(served: Served, transport: str) -> str:
    return served.grpc if transport == "grpc" else f"http://{served.http}"


def png(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_gets_its_prediction(address: str) -> None:
    with Client(address) as stn:
        prediction = stn.predict(WHITE, top_k=2)
    assert prediction.label == "bright"
    assert prediction.labels == ("bright", "medium")
    assert prediction.probability == pytest.approx(1 / (1 + np.exp(-5) + np.exp(-20)), abs=1e-6)
    assert (prediction.model_name, prediction.model_version) == ("vision", "1")
    [transform] = prediction.transforms
    assert (transform.name, transform.kind, transform.place) == ("look", "affine", "image")
    assert transform.theta.tolist() == [[0.5, 0, 0.25], [0, 0.5, 0]]
    assert transform.quad.tolist() == [[15, 5], [35, 5], [35, 15], [15, 15]]
    assert transform.pose.scale == pytest.approx((0.5, 0.5))
    assert transform.pose.translation == pytest.approx((0.25, 0))
    assert transform.pose.inside_ratio == 1


def test_both_transports_answer_alike(vision_server: Served) -> None:
    image = np.random.default_rng(0).integers(0, 255, (31, 17, 3), np.uint8)
    answers = []
    for transport in ("grpc", "http"):
        with Client(address_of(vision_server, transport)) as stn:
            answers.append(stn.predict(image))
    over_grpc, over_http = answers
    assert over_grpc.labels == over_http.labels
    assert over_grpc.probabilities == pytest.approx(over_http.probabilities, rel=1e-6)
    assert over_grpc.image_size == over_http.image_size == (31, 17)
    assert over_grpc.input_box == over_http.input_box
    np.testing.assert_allclose(over_grpc.transforms[0].quad, over_http.transforms[0].quad, rtol=1e-6)


def test_every_kind_of_source(address: str, tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    path.write_bytes(png(WHITE))
    sources: list[ImageSource] = [
        png(WHITE),
        path,
        str(path),
        Image.fromarray(WHITE),
        WHITE,
        WHITE[..., None],
        np.stack([WHITE] * 3, -1),
    ]
    with Client(address) as stn:
        predictions = [stn.predict(source) for source in sources]
    assert {prediction.label for prediction in predictions} == {"bright"}
    assert len({prediction.probability for prediction in predictions}) == 1


def test_a_turned_photo_is_answered_and_drawn_upright(address: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((300, 400, 3), 255, np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    with Client(address) as stn:
        prediction = stn.predict(tmp_path / "photo.jpg")
    assert prediction.image_size == (400, 300)
    assert prediction.transforms[0].quad.tolist() == [[112.5, 100], [262.5, 100], [262.5, 300], [112.5, 300]]
    assert prediction.rectify(tmp_path / "photo.jpg").getpixel((10, 10)) == (255, 255, 255)
    assert prediction.draw(tmp_path / "photo.jpg").height >= 400


def test_one_bad_image_costs_the_others_nothing(address: str, tmp_path: Path) -> None:
    with Client(address) as stn:
        outcomes = stn.predict_many(
            [WHITE, png(WHITE)[:50], tmp_path / "missing.png", np.zeros((3, 3)), b"", BLACK]  # type: ignore[list-item]
        )
    answered = [outcome.label for outcome in outcomes if isinstance(outcome, Prediction)]
    assert answered == ["bright", "dark"]
    refused = [str(outcome) for outcome in outcomes if isinstance(outcome, InvalidRequest)]
    assert [type(outcome) for outcome in outcomes[1:5]] == [InvalidRequest] * 4
    for message, said in zip(refused, ["truncated", "missing.png", "float64", "0 bytes"], strict=True):
        assert said in message


def test_a_bad_image_alone(address: str) -> None:
    with Client(address) as stn:
        with pytest.raises(InvalidRequest, match="expected an image as JPEG, PNG, WebP or BMP"):
            stn.predict(b"not an image")
        [outcome] = stn.predict_many([b"not an image"])
        assert isinstance(outcome, InvalidRequest)
        assert stn.predict(WHITE).label == "bright"


def test_many_images_keep_their_order(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [WHITE if index % 3 else BLACK for index in range(2 * batches.LARGEST_BATCH)]
    expected = ["bright" if index % 3 else "dark" for index in range(2 * batches.LARGEST_BATCH)]
    for largest_bytes in (batches.LARGEST_BATCH_BYTES, 3 * len(png(WHITE))):
        monkeypatch.setattr(batches, "LARGEST_BATCH_BYTES", largest_bytes)
        with Client(address) as stn:
            *outcomes, last = stn.predict_many([*images, b"a bad one, alone in the last request"])
        assert [outcome.label for outcome in outcomes if isinstance(outcome, Prediction)] == expected
        assert isinstance(last, InvalidRequest)


def test_long_lists_are_read_as_they_are_answered(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LARGEST_BATCH", 2)
    images = iter([WHITE] * 1000)
    with Client(address, concurrency=3) as stn:
        outcomes = stn.predict_iter(images)
        assert isinstance(next(outcomes), Prediction)
        del outcomes
    assert len(list(images)) > 980


def test_crops(address: str) -> None:
    with Client(address) as stn:
        crop = stn.predict(WHITE, crops=True, crop_side=40).transforms[0].crop
        assert crop is not None
        assert crop.getcolors() == [(1600, 255)]
        assert stn.predict(WHITE).transforms[0].crop is None
        with pytest.raises(InvalidRequest, match="crop_side"):
            stn.predict(WHITE, crops=True, crop_side=5000)


def test_tensors(address_of_two: str) -> None:
    images = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    with Client(address_of_two) as stn:
        outputs = stn.infer("ident", {"image": images})
        np.testing.assert_array_equal(outputs["logits"], images.reshape(3, -1)[:, :10])
        big_endian = stn.infer("ident", {"image": images.astype(">f4")}, version="1", outputs=["logits"])
        np.testing.assert_array_equal(big_endian["logits"], outputs["logits"])
        pixels = np.full((2, 8, 8, 1), 255, np.uint8)
        assert list(stn.infer("vision", {"image": pixels}, outputs=["theta"])) == ["theta"]


def test_tensors_that_do_not_fit(address_of_two: str) -> None:
    with Client(address_of_two) as stn:
        with pytest.raises(InvalidRequest, match="FP64"):
            stn.infer("ident", {"image": np.zeros((1, 1, 28, 28))})
        with pytest.raises(InvalidRequest, match="input 'image' is complex128, expected one of bool"):
            stn.infer("ident", {"image": np.zeros(3, complex)})
        with pytest.raises(NotFound, match="nope"):
            stn.infer("nope", {"image": np.zeros(3)})


def test_no_image_needs_no_answer(address: str) -> None:
    with Client(address) as stn:
        assert stn.predict_many([]) == []


def test_threads_share_a_client(address: str) -> None:
    with Client(address) as stn, ThreadPoolExecutor(8) as pool:
        predictions = list(pool.map(stn.predict, [WHITE, BLACK] * 20))
    assert [prediction.label for prediction in predictions] == ["bright", "dark"] * 20


def test_one_of_several_models_must_be_named(address_of_two: str) -> None:
    with Client(address_of_two) as stn:
        with pytest.raises(InvalidRequest, match=r"has 2 models \(ident, vision\): say which"):
            stn.predict(WHITE)
        assert stn.predict(WHITE, model="vision", version="1").label == "bright"


def test_unknown_models_and_versions(address_of_two: str) -> None:
    with Client(address_of_two) as stn:
        with pytest.raises(NotFound, match="nothere"):
            stn.predict_many([WHITE, WHITE], model="nothere")
        with pytest.raises(NotFound, match="9"):
            stn.predict(WHITE, model="vision", version="9")
        with pytest.raises(ServingError):
            stn.predict(WHITE, model="a model/with a slash")


def test_a_model_that_takes_no_images(address_of_two: str) -> None:
    with Client(address_of_two) as stn, pytest.raises(InvalidRequest, match="'ident' cannot be asked with images"):
        stn.predict_many([WHITE, WHITE], model="ident")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


@pytest.mark.parametrize(("scheme", "protocol"), [("", "gRPC"), ("http://", "HTTP")])
def test_no_server(scheme: str, protocol: str, free_port: int) -> None:
    address = f"{scheme}127.0.0.1:{free_port}"
    with Client(address) as stn, pytest.raises(Unavailable, match=rf"no server answers at {address}.*{protocol} port"):
        stn.predict(WHITE)


def test_the_other_protocols_port(vision_server: Served) -> None:
    for address in (vision_server.http, f"http://{vision_server.grpc}"):
        with Client(address, timeout_s=5) as stn, pytest.raises(ServingError, match=address):
            stn.predict(WHITE, model="vision")


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_client_outlives_a_restart(transport: str, tmp_path: Path) -> None:
    publish_vision(tmp_path)
    with running(tmp_path) as served:
        stn = Client(address_of(served, transport))
        assert stn.predict(WHITE).label == "bright"
    with pytest.raises(Unavailable):
        stn.predict(WHITE)
    (tmp_path / "ready.json").unlink(missing_ok=True)
    ports = (f"--{name}-port={getattr(served, name).rpartition(':')[2]}" for name in ("grpc", "http", "metrics"))
    with running(tmp_path, *ports), stn:
        assert eventually(lambda: stn.predict(BLACK)).label == "dark"


def eventually(ask: Callable[[], Prediction]) -> Prediction:
    """The answer, once the client has noticed that the server is back."""
    for _ in range(100):
        with suppress(Unavailable):
            return ask()
        time.sleep(0.05)
    return ask()


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_server_that_does_not_answer(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with Client(address) as stn, pytest.raises(DeadlineExceeded, match=rf"no answer from {address} within 0.1 s"):
            stn.predict(WHITE, model="vision", timeout_s=0.1)


@pytest.fixture
def grpc_server_without_services() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def web_server() -> Iterator[str]:
    with answering(404, b"<html>Not Found</html>") as address:
        yield address


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A web server that always says the same."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("other", ["grpc_server_without_services", "web_server"])
def test_servers_of_something_else(other: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(other)
    with Client(address) as stn, pytest.raises(Unsupported, match=f"the server at {address} has no typed image API"):
        stn.predict(WHITE, model="vision")


@pytest.mark.parametrize(("status", "body"), [(200, b'{"results": 3}'), (502, b"<html>Bad Gateway</html>")])
def test_answers_that_are_none(status: int, body: bytes) -> None:
    with (
        answering(status, body) as address,
        Client(address) as stn,
        pytest.raises(ServingError, match=f"{address} answered"),
    ):
        stn.predict(WHITE, model="vision")


@pytest.mark.parametrize("address", ["ftp://localhost", "grpc+tls://localhost:1"])
def test_addresses_of_another_kind(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected host:port for gRPC, http://host:port"):
        Client(address)


def test_servers_do_not_pay_for_the_client() -> None:
    code = "import sys, stn_serve; print([name for name in ('PIL', 'grpc', 'numpy', 'httpx') if name in sys.modules])"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert imported.stdout.strip() == "[]"
    with pytest.raises(ImportError, match="Clients"):
        from stn_serve import Clients  # noqa: F401
