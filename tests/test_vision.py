from __future__ import annotations

import itertools
import queue
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from onnx_models import VISION_METADATA, publish_vision
from PIL import Image
from served import Served, start

from stn_serve import poses
from stn_serve.description import Prepared, describe
from stn_serve.errors import ModelFailure
from stn_serve.metadata import ControlGrid, InputImage, ModelMetadata, Transformer
from stn_serve.proto.image_prediction_pb2 import Prediction, PredictRequest
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

LOGITS = np.array([[0.0, np.log(3.0), 0.0]], np.float32)


@pytest.fixture
def stub(server: Served) -> Iterator[ImagePredictionStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated


def png(brightness: int, size: tuple[int, int] = (16, 12)) -> bytes:
    buffer = BytesIO()
    Image.new("L", size, brightness).save(buffer, "PNG")
    return buffer.getvalue()


def prepared(box: poses.Box) -> Prepared:
    return Prepared(np.zeros((8, 8, 1), np.uint8), box, 100, 50)


def test_every_image_is_answered_for_itself(stub: ImagePredictionStub) -> None:
    images = [png(brightness) for brightness in (0, 255, 128) * 5] + [b"GIF89a"]
    answer = stub.Predict(PredictRequest(model_name="vision", id="mine", images=images, top_k=1))
    assert (answer.model_name, answer.model_version, answer.id) == ("vision", "1", "mine")
    labels = [result.prediction.classes[0].label for result in answer.results[:-1]]
    assert labels == ["dark", "bright", "medium"] * 5
    assert answer.results[-1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "got 6 bytes of a GIF" in answer.results[-1].error.message


def test_a_single_bad_image_is_the_requests_error(stub: ImagePredictionStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(PredictRequest(model_name="vision", images=[b"GIF89a"]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "expected an image as JPEG, PNG, WebP or BMP" in (refused.value.details() or "")


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (PredictRequest(model_name="nope", images=[b"x"]), "NOT_FOUND", "unknown model: 'nope'"),
        (PredictRequest(model_name="vision", model_version="2", images=[b"x"]), "NOT_FOUND", "version 2 is not found"),
        (PredictRequest(model_name="vision"), "INVALID_ARGUMENT", "the request holds no image"),
        (
            PredictRequest(model_name="ident", images=[b"x"]),
            "INVALID_ARGUMENT",
            "it has no 'stn' metadata. Send it tensors: ModelInfer, or POST /v2/models/ident/infer",
        ),
    ],
)
def test_a_request_that_cannot_be_answered(
    stub: ImagePredictionStub, request_: PredictRequest, code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(request_)
    assert refused.value.code().name == code
    assert message in (refused.value.details() or "")


@pytest.fixture
def only_stub(vision_server: Served) -> Iterator[ImagePredictionStub]:
    """To a server with one model."""
    with grpc.insecure_channel(vision_server.grpc) as channel:
        yield ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated


def test_an_only_model_need_not_be_named(only_stub: ImagePredictionStub, vision_server: Served) -> None:
    assert only_stub.Predict(PredictRequest(images=[png(255)])).model_name == "vision"
    answer = httpx.post(f"http://{vision_server.http}/v1/predict?crops=true&crop_side=8", content=png(255)).json()
    assert answer["model_name"] == "vision"
    [transform] = answer["results"][0]["prediction"]["transforms"]
    with Image.open(BytesIO(b64decode(transform["crop"]))) as crop:
        assert (crop.format, crop.size, crop.getpixel((4, 4))) == ("PNG", (8, 8), 255)


def test_one_of_several_must_be_named(stub: ImagePredictionStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(PredictRequest(images=[png(255)]))
    assert refused.value.details() == (
        "the request names no model, and the server has 2 models (ident, vision): say which"
    )


def test_crops_show_what_the_transformer_saw(stub: ImagePredictionStub) -> None:
    """It looks at the middle of the right three quarters: 37.5 to 87.5 of 100 columns."""
    pixels = np.zeros((60, 100), np.uint8)
    pixels[15:45, 38:87] = 200
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    request = PredictRequest(model_name="vision", images=[buffer.getvalue()] * 3, crops=True)
    for result in stub.Predict(request).results:
        with Image.open(BytesIO(result.prediction.transforms[0].crop)) as crop:
            assert crop.size == (4, 4)
            assert np.asarray(crop).min() > 160
            assert np.asarray(crop)[1:-1, 1:-1].min() == 200
    request.crops = False
    assert not stub.Predict(request).results[0].prediction.transforms[0].crop


def test_crops_are_bounded(stub: ImagePredictionStub) -> None:
    with pytest.raises(grpc.RpcError, match="crop_side is 513, expected 0 to 512 pixels"):
        stub.Predict(PredictRequest(model_name="vision", images=[png(0)], crops=True, crop_side=513))


def test_a_stream_answers_every_request_in_order(stub: ImagePredictionStub) -> None:
    levels = [0, 255, 128] * 40
    requests = [
        PredictRequest(model_name="vision", id=str(number), images=[png(level)], top_k=1)
        for number, level in enumerate(levels)
    ]
    requests[7].model_name = "nope"
    requests[8].images[0] = b"GIF89a"
    requests[9].images.append(b"GIF89a")
    responses = list(stub.PredictStream(iter(requests)))
    assert [response.id for response in responses] == [request.id for request in requests]
    assert responses[7].error.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "got 6 bytes of a GIF" in responses[8].error.message
    assert [result.WhichOneof("outcome") for result in responses[9].results] == ["prediction", "error"]
    labels = {0: "dark", 255: "bright", 128: "medium"}
    for level, response in list(zip(levels, responses, strict=True))[10:]:
        assert response.results[0].prediction.classes[0].label == labels[level]
        assert not response.HasField("error")


def test_a_stream_answers_before_the_next_request(stub: ImagePredictionStub) -> None:
    requests: queue.SimpleQueue[PredictRequest | None] = queue.SimpleQueue()
    responses = stub.PredictStream(iter(requests.get, None))
    for level, label in ((0, "dark"), (255, "bright")):
        requests.put(PredictRequest(model_name="vision", images=[png(level)]))
        assert next(responses).results[0].prediction.classes[0].label == label
    requests.put(None)
    assert list(responses) == []


def test_a_stream_that_is_dropped_leaves_the_server_well(stub: ImagePredictionStub) -> None:
    request = PredictRequest(model_name="vision", images=[png(0)])
    responses = stub.PredictStream(itertools.repeat(request, 5000))
    next(responses)
    responses.cancel()
    assert stub.Predict(request).results[0].prediction.classes[0].label == "dark"


def test_a_stopping_server_ends_an_idle_stream(tmp_path: Path) -> None:
    publish_vision(tmp_path)
    served = start(tmp_path, "--grace-s", "25")
    requests: queue.SimpleQueue[PredictRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(served.grpc) as channel:
        stub = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated
        responses = stub.PredictStream(iter(requests.get, None))
        requests.put(PredictRequest(images=[png(0)]))
        assert next(responses).results[0].prediction.classes[0].label == "dark"
        served.process.terminate()
        with pytest.raises(grpc.RpcError, match="Server is stopping") as ended:
            next(responses)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        requests.put(None)
    served.process.communicate(timeout=20)  # a second signal would end it at once
    assert served.process.returncode == 0


def test_quads_lie_on_the_callers_image(stub: ImagePredictionStub) -> None:
    prediction = stub.Predict(PredictRequest(model_name="vision", images=[png(0, (100, 60))])).results[0].prediction
    (transform,) = prediction.transforms
    assert (prediction.image_width, prediction.image_height) == (100, 60)
    # Half the size, its centre a quarter of half the width to the right.
    assert [(point.x, point.y) for point in transform.quad] == [(37.5, 15), (87.5, 15), (87.5, 45), (37.5, 45)]
    assert list(transform.outline) == list(transform.quad)
    assert (transform.kind, transform.place, transform.output_width) == ("affine", "image", 4)
    assert transform.pose.rotation_degrees == pytest.approx(0, abs=1e-6)
    assert transform.pose.inside_ratio == 1
    assert (prediction.input_box.right, prediction.input_box.bottom) == (100, 60)


def test_probabilities_are_a_softmax_of_the_best() -> None:
    box = poses.Box(0, 0, 100, 50)
    outputs = {"logits": LOGITS, "theta": np.array([[[[1, 0, 0], [0, 1, 0]]]], np.float32)}
    prediction = describe(VISION_METADATA, prepared(box), outputs, 2)
    assert [(entry.index, entry.label) for entry in prediction.classes] == [(1, "medium"), (0, "dark")]
    assert [entry.probability for entry in prediction.classes] == pytest.approx([0.6, 0.2])


def test_logits_that_are_not_finite_are_the_models_failure() -> None:
    with pytest.raises(ModelFailure, match="logits are not finite"):
        describe(VISION_METADATA, prepared(poses.Box(0, 0, 1, 1)), {"logits": LOGITS * np.nan}, 1)


def test_a_theta_that_is_not_finite_leaves_the_classes() -> None:
    outputs = {"logits": LOGITS, "theta": np.full((1, 1, 2, 3), np.nan, np.float32)}
    prediction = describe(VISION_METADATA, prepared(poses.Box(0, 0, 1, 1)), outputs, 1)
    assert prediction.classes[0].label == "medium"
    assert not prediction.transforms[0].quad
    assert not prediction.transforms[0].HasField("pose")


def spline_prediction(regularization: float) -> Prediction:
    metadata = ModelMetadata(
        task="classification",
        labels=("a", "b", "c"),
        input=InputImage(height=8, width=8, color="gray"),
        transform="thin_plate_spline",
        transformers=(Transformer(name="bend", place="image", output_size=(4, 4)),),
        control_grid=ControlGrid(size=4, regularization=regularization),
    )
    theta = poses.control_points(4)[None, None] * 0.5
    return describe(metadata, prepared(poses.Box(0, 0, 100, 50)), {"logits": LOGITS, "theta": theta}, 1)


def test_a_spline_has_a_finer_outline() -> None:
    (transform,) = spline_prediction(0.0).transforms
    assert len(transform.outline) == 32
    assert list(transform.theta_shape) == [16, 2]
    np.testing.assert_allclose([(p.x, p.y) for p in transform.quad], [(25, 12.5), (75, 12.5), (75, 37.5), (25, 37.5)])
    assert spline_prediction(0.5).transforms[0].regularization == 0.5


def test_a_network_without_a_transformer_is_answered_too() -> None:
    metadata = ModelMetadata(
        task="classification", labels=("a", "b", "c"), input=InputImage(height=8, width=8, color="gray")
    )
    prediction = describe(metadata, prepared(poses.Box(0, 0, 1, 1)), {"logits": LOGITS}, 3)
    assert len(prediction.classes) == 3
    assert not prediction.transforms
