"""A gateway before two real Tritons: callers cannot tell it from `stn serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import urllib3
from gateway_tritons import index, is_ready, picture, running_gateway, running_tritons, scrape, wait_until
from numpy.typing import NDArray
from onnx_models import publish_ident, publish_vision
from python_backend import wrap
from served import Served

from benchmarks.real_triton import Triton
from stn_serve.client import Client
from stn_serve.errors import DeadlineExceeded, InvalidRequest, NotFound
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.proto.image_prediction_pb2_grpc import ImagePredictionStub

SLOW = 'parameters { key: "delay_s" value { string_value: "0.2" } }'


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Triton]]:
    """With `vision`, each batch of which takes a while, and `ident`, which does not say what its outputs mean."""
    ours = tmp_path_factory.mktemp("ours")
    shims = tmp_path_factory.mktemp("tritons") / "repository"
    wrap(publish_vision(ours), shims, SLOW)
    wrap(publish_ident(ours), shims)
    with running_tritons(*[(shims, ("vision", "ident"))] * 2) as tritons:
        yield tritons


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tritons: list[Triton]) -> Iterator[Served]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), tritons) as served:
        yield served


def test_images_are_answered_as_without_a_gateway(gateway: Served, vision_server: Served) -> None:
    request = pb.PredictRequest(model_name="vision", images=[picture(60), b"no image", picture(200)], top_k=3, id="7")

    def over_grpc(served: Served) -> pb.PredictResponse:
        with grpc.insecure_channel(served.grpc) as channel:
            stub = ImagePredictionStub(channel)  # type: ignore[no-untyped-call]  # generated
            response: pb.PredictResponse = stub.Predict(request)
        return response

    def over_http(served: Served) -> object:
        url = f"http://{served.http}/v1/models/vision/predict?crops=true"
        return urllib3.request("POST", url, body=picture(), headers={"content-type": "image/png"}).json()

    assert over_grpc(gateway) == over_grpc(vision_server)
    assert over_http(gateway) == over_http(vision_server)


def test_tensors_are_answered_over_both_protocols_by_both_tritons(gateway: Served, tritons: list[Triton]) -> None:
    before = scrape(gateway)
    images = np.arange(3 * 784, dtype=np.float32).reshape(3, 1, 28, 28)
    for _ in range(3):
        for module, address in ((tritonclient.grpc, gateway.grpc), (tritonclient.http, gateway.http)):
            with module.InferenceServerClient(address) as client:
                tensor = module.InferInput("image", images.shape, "FP32")
                tensor.set_data_from_numpy(images)
                answer: NDArray[np.float32] = client.infer("ident", [tensor]).as_numpy("logits")
                np.testing.assert_array_equal(answer, images.reshape(3, -1)[:, :10])
    after = scrape(gateway)
    for triton in tritons:
        name = f"stn_triton_sent_total {triton.grpc}"
        assert after[name] - before[name] == 3


def test_the_index_and_the_configurations_are_tritons(gateway: Served, tritons: list[Triton]) -> None:
    assert index(gateway) == [{"name": name, "version": "1", "state": "READY"} for name in ("ident", "vision")]
    assert all(is_ready(gateway, path) for path in ("/v2/health/ready", "/v2/models/vision/ready"))
    for path in ("/v2/models/ident", "/v2/models/vision/config"):
        addresses = (gateway.http, tritons[0].http)
        ours, theirs = (urllib3.request("GET", f"http://{address}{path}").json() for address in addresses)
        assert ours == theirs


def test_what_is_wrong_is_refused_before_triton_is_asked(gateway: Served) -> None:
    before = scrape(gateway)
    with Client(gateway.grpc) as client:
        with pytest.raises(NotFound, match="Request for unknown model: 'nope' is not found"):
            client.predict(picture(), model="nope")
        with pytest.raises(NotFound, match="version 7 is not found"):
            client.predict(picture(), model="vision", version="7")
        with pytest.raises(InvalidRequest, match="'ident' cannot be asked with images: it has no 'stn' metadata"):
            client.predict(picture(), model="ident")
        with pytest.raises(InvalidRequest, match=r"Expected \[-1,8,8,1\], got \[1,9,8,1\]"):
            client.infer("vision", {"image": np.zeros((1, 9, 8, 1), np.uint8)})
    after = scrape(gateway)
    assert {name: value for name, value in after.items() if "triton" in name and value != before[name]} == {}


@pytest.mark.parametrize("operation", ["load", "unload"])
def test_models_are_managed_by_the_tritons(gateway: Served, operation: str) -> None:
    response = urllib3.request("POST", f"http://{gateway.http}/v2/repository/models/vision/{operation}")
    assert response.status == 501
    assert f"failed to {operation} 'vision': models are loaded and unloaded by the Tritons" in response.json()["error"]


def test_a_deadline_holds_all_the_way(gateway: Served) -> None:
    with Client(gateway.grpc) as client, pytest.raises(DeadlineExceeded):
        client.predict(picture(), model="vision", timeout_s=0.1)
    wait_until(lambda: not sum(value for name, value in scrape(gateway).items() if "in_flight" in name))


def test_metrics_are_what_the_gateway_sees(gateway: Served) -> None:
    before = scrape(gateway)
    with Client(gateway.grpc) as client:
        assert len(client.predict_many([picture()] * 4, model="vision")) == 4
    after = scrape(gateway)
    for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count"):
        assert after[name] - before[name] == 4
    assert after["nv_inference_queue_duration_us"] == before["nv_inference_queue_duration_us"] == 0
    assert (
        after["nv_inference_compute_infer_duration_us"] - before["nv_inference_compute_infer_duration_us"] > 4 * 0.2e6
    )


def test_workers_share_the_work_and_add_up(tmp_path: Path, tritons: list[Triton]) -> None:
    with running_gateway(tmp_path, tritons, "--workers", "2") as gateway:
        for _ in range(6):
            with Client(gateway.grpc) as client:  # a connection of its own, so that both workers may get some
                assert client.predict(picture(), model="vision").label == "bright"
        counted = scrape(gateway)
    assert counted["nv_inference_request_success"] == 6
    assert sum(counted[f"stn_triton_answered_total {triton.grpc}"] for triton in tritons) == 6
    assert all(counted[f"stn_triton_up {triton.grpc}"] == 1 for triton in tritons)
