from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http
import urllib3
from PIL import Image
from served import Served

LENGTH = "Inference-Header-Content-Length"
UNKNOWN_ID = "[request id: <id_unknown>] "
INFER = "/v2/models/ident/infer"


@pytest.fixture(scope="module")
def pool() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False) as pool:
        yield pool


@pytest.fixture
def client(server: Served) -> Iterator[tritonclient.http.InferenceServerClient]:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        yield client


class Caller:
    """Plain HTTP requests to the server under test."""

    def __init__(self, pool: urllib3.PoolManager, address: str) -> None:
        self.pool = pool
        self.address = address

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        return self.pool.request(method, f"http://{self.address}{path}", body=body, headers=headers)


@pytest.fixture
def call(pool: urllib3.PoolManager, server: Served) -> Caller:
    return Caller(pool, server.http)


def tensor(**changes: Any) -> dict[str, Any]:
    fields = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [float(i) for i in range(784)]}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def body(*tensors: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps({"inputs": list(tensors or (tensor(),)), **fields})


def binary(raw: bytes, size: int = 3136) -> tuple[bytes, dict[str, str]]:
    document = body(tensor(data=None, parameters={"binary_data_size": size}), parameters={"binary_data_output": True})
    return document + raw, {LENGTH: str(len(document))}


IMAGE = np.arange(784, dtype=np.float32).tobytes()


def test_health_and_metadata(call: Caller) -> None:
    assert call("GET", "/v2/health/live").status == 200
    assert call("GET", "/v2/health/ready").json() == {"ready": True}
    assert call("GET", "/v2/models/ident/ready").status == 200
    assert call("GET", "/v2/models/ident/versions/1/ready").status == 200
    assert call("GET", "/v2").json()["name"] == "stn-serve"
    assert call("GET", "/v2/models/ident").json() == {
        "name": "ident",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }


def test_config_has_enums_by_name_numbers_as_numbers_and_defaults(call: Caller) -> None:
    config = call("GET", "/v2/models/ident/config").json()
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert config["input"][0]["dims"] == [1, 28, 28]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert "sequence_batching" not in config


def test_the_index_says_why_a_model_is_not_served(call: Caller) -> None:
    index = {entry["name"]: entry for entry in call("POST", "/v2/repository/index").json()}
    assert index["ident"] == {"name": "ident", "version": "1", "state": "READY"}
    assert "no field named" in index["broken"]["reason"]
    ready = call("POST", "/v2/repository/index", b'{"ready": true}').json()
    assert {entry["name"] for entry in ready} == {"ident", "vision"}


@pytest.mark.parametrize("binary_data", [True, False])
def test_infer_with_tritons_client(client: tritonclient.http.InferenceServerClient, binary_data: bool) -> None:
    image = np.random.default_rng(0).standard_normal((3, 1, 28, 28), np.float32)
    wanted = tritonclient.http.InferInput("image", [3, 1, 28, 28], "FP32")
    wanted.set_data_from_numpy(image, binary_data=binary_data)
    output = tritonclient.http.InferRequestedOutput("logits", binary_data=binary_data)
    result = client.infer("ident", [wanted], outputs=[output], request_id="7", model_version="1")
    np.testing.assert_allclose(result.as_numpy("logits"), image.reshape(3, -1)[:, :10])
    assert result.get_response()["id"] == "7"


def test_answers_look_like_tritons(call: Caller) -> None:
    response = call("POST", INFER, body(id="7"))
    assert response.data == (
        b'{"id":"7","model_name":"ident","model_version":"1","outputs":[{"name":"logits","datatype":"FP32",'
        b'"shape":[1,10],"data":[0.0,1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0]}]}'
    )
    response = call("POST", INFER, *binary(IMAGE))
    document = (
        b'{"model_name":"ident","model_version":"1","outputs":[{"name":"logits","datatype":"FP32","shape":[1,10],'
        b'"parameters":{"binary_data_size":40}}]}'
    )
    assert response.data == document + IMAGE[:40]
    assert response.headers[LENGTH] == str(len(document))
    assert response.headers["Content-Type"] == "application/octet-stream"


def test_nested_data_is_accepted_and_unknown_parameters_are_ignored(call: Caller) -> None:
    nested = np.arange(784, dtype=np.float64).reshape(1, 1, 28, 28).tolist()
    response = call("POST", INFER, body(tensor(data=nested), parameters={"custom": "x", "timeout": 5}))
    assert response.json()["outputs"][0]["data"] == list(range(10))


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{nonsense", 400, "failed to parse the request JSON buffer: "),
        (b"", 400, "failed to parse the request JSON buffer: "),
        (b"[" * 5000, 400, "failed to parse the request JSON buffer: "),
        (b'{"inputs": [NaN]}', 400, "failed to parse the request JSON buffer: "),
        (b"[]", 400, "Unable to parse 'body': expected an object"),
        (b"{}", 400, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
        (b'{"inputs": 7}', 400, "Unable to parse 'inputs': expected an array"),
        (b'{"inputs": [7]}', 400, "Unable to parse 'inputs': expected an object"),
        (
            b'{"inputs": []}',
            400,
            UNKNOWN_ID + "expected 1 inputs but got 0 inputs for model 'ident'. Got input(s) [], but missing required "
            "input(s) ['image']. Please provide all required input(s).",
        ),
        (body(tensor(name="wrong")), 400, "unexpected inference input 'wrong' for model 'ident'"),
        (body(tensor(), tensor()), 400, UNKNOWN_ID + "input 'image' already exists in request"),
        (
            body(tensor(datatype="INT32", data=[0] * 784)),
            400,
            UNKNOWN_ID + "inference input 'image' data-type is 'INT32', but model 'ident' expects 'FP32'",
        ),
        (body(tensor(datatype="FP33")), 400, "invalid datatype for input image"),
        (
            body(tensor(shape=[1, 1, 28, 27], data=[0] * 756)),
            400,
            UNKNOWN_ID + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got [1,1,28,27]"
            ". NOTE: Setting a non-zero max_batch_size",
        ),
        (
            body(tensor(shape=[9, 1, 28, 28], data=[0] * 9 * 784)),
            400,
            UNKNOWN_ID + "inference request batch-size must be <= 8 for 'ident'",
        ),
        (body(tensor(data=[0.0])), 400, "Unable to parse 'data' of input 'image': shape [1, 1, 28, 28] does not match"),
        (body(tensor(data=["a"] * 784)), 400, "Unable to parse 'data' of input 'image': expected elements of FP32"),
        (body(tensor(data=[1e300] * 784)), 400, "Unable to parse 'data' of input 'image': element out of the range"),
        (body(tensor(data=[[1], [1, 2]])), 400, "Unable to parse 'data' of input 'image': "),
        (body(tensor(shape=[1, 1, -28, 28])), 400, "Unable to parse 'shape' of input 'image': expected integers >= 0"),
        (body(tensor(shape=[1, 1, True, 28])), 400, "Unable to parse 'shape' of input 'image': expected integers"),
        (body(tensor(shape=[2**60] * 4)), 400, "Unable to parse 'data' of input 'image': shape"),
        (
            body(tensor(data=None)),
            400,
            "Input must set only one of the following fields: 'data', ",
        ),
        (body(outputs=[{"name": "nope"}]), 400, "unexpected inference output 'nope' for model 'ident'"),
        (body(id=7), 400, "Unable to parse 'id': expected a string"),
        (
            body(outputs=[{"name": "logits", "parameters": {"classification": 0}}]),
            400,
            "invalid value for 'classification' parameter, expected > 0",
        ),
        (
            body(outputs=[{"name": "logits", "parameters": {"classification": "3"}}]),
            400,
            "invalid value type for 'classification' parameter",
        ),
        (body(parameters={"timeout": 1.5}), 400, "invalid value type for 'timeout' parameter"),
        (body(parameters={"priority": -1}), 400, "invalid value for 'priority' parameter, expected >= 0"),
        (body(parameters={"triton_x": 1}), 400, "parameter keys starting with 'triton_' are reserved"),
        (
            body(tensor(data=None, parameters={"shared_memory_region": "a", "shared_memory_byte_size": 3136})),
            501,
            "shared memory is not allowed",
        ),
    ],
)
def test_a_wrong_request_is_refused_as_triton_refuses_it(
    call: Caller, content: bytes, status: int, message: str
) -> None:
    response = call("POST", INFER, content)
    assert response.json()["error"].startswith(message)
    assert response.status == status
    assert call("POST", INFER, body()).status == 200


@pytest.mark.parametrize(
    ("request_body", "status", "message"),
    [
        (binary(IMAGE[:-4]), 400, "unexpected size for input 'image', expecting 4 additional bytes for model 'ident'"),
        (binary(IMAGE + b"more"), 400, "unexpected additional input data for model 'ident'"),
        (binary(IMAGE[:100], 100), 400, UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'"),
        (binary(IMAGE, -1), 400, "unexpected additional input data for model 'ident'"),
        ((body(), {LENGTH: "99999999"}), 400, "inference header size should be in range (0, "),
        ((body(), {LENGTH: "-1"}), 400, "inference header size should be in range (0, "),
        ((body(), {LENGTH: "abc"}), 400, "inference header size should be in range (0, "),
        ((body(), {LENGTH: "9" * 5000}), 400, "inference header size should be in range (0, "),
        (
            (IMAGE[:100], {LENGTH: "0"}),
            400,
            UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 100",
        ),
        ((body(), {"Content-Encoding": "zstd"}), 501, "Unsupported compression type"),
    ],
)
def test_a_wrong_binary_request_is_refused(
    call: Caller, request_body: tuple[bytes, dict[str, str]], status: int, message: str
) -> None:
    response = call("POST", INFER, *request_body)
    assert response.json()["error"].startswith(message)
    assert response.status == status


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/v2/models/nope/infer", 404, "Request for unknown model: 'nope' is not found"),
        ("POST", "/v2/models/ident/versions/3/infer", 404, "Request for unknown model: 'ident' version 3 is not found"),
        ("POST", "/v2/models/ident/versions/0/infer", 400, "failed to get model version from specified version string"),
        ("POST", "/v2/models/ident/versions/x/infer", 404, "Not Found"),
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/ready", 400, "Model version not ready"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("GET", INFER, 405, "Method Not Allowed"),
        ("PUT", INFER, 405, "Method Not Allowed"),
        ("GET", "/v2/", 404, "Not Found"),
        ("GET", "/nothing", 404, "Not Found"),
        ("POST", "/v1/models/ident/predict", 400, "model 'ident' cannot be asked with images"),
        ("POST", "/v1/models/nope/predict", 404, "Request for unknown model: 'nope' is not found"),
    ],
)
def test_paths_methods_and_names_that_do_not_exist(
    call: Caller, method: str, path: str, status: int, message: str
) -> None:
    response = call(method, path, body() if method == "POST" else None)
    assert response.json()["error"].startswith(message)
    assert response.status == status


def png(brightness: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (16, 12), brightness).save(buffer, "PNG")
    return buffer.getvalue()


def test_predict_takes_an_encoded_image_as_it_is(call: Caller) -> None:
    answer = call("POST", "/v1/models/vision/predict?top_k=2&id=mine", png(255), {"Content-Type": "image/png"}).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("vision", "1", "mine")
    prediction = answer["results"][0]["prediction"]
    assert [entry["label"] for entry in prediction["classes"]] == ["bright", "medium"]
    assert (prediction["image_width"], prediction["image_height"]) == (16, 12)
    transform = prediction["transforms"][0]
    assert transform["theta"] == [0.5, 0, 0.25, 0, 0.5, 0]
    assert transform["theta_shape"] == [2, 3]
    assert transform["quad"][0] == {"x": 6, "y": 3}
    assert transform["pose"]["scale"] == [0.5, 0.5]


def test_predict_takes_many_images_and_answers_the_good_ones(call: Caller) -> None:
    images = [b64encode(data).decode() for data in (png(0), b"not an image", png(128), png(255)[:40])]
    answer = call(
        "POST",
        "/v1/models/vision/versions/1/predict",
        orjson.dumps({"images": images, "top_k": 1}),
        {"Content-Type": "application/json; charset=utf-8"},
    ).json()
    first, second, third, fourth = answer["results"]
    assert first["prediction"]["classes"][0]["label"] == "dark"
    assert third["prediction"]["classes"][0]["label"] == "medium"
    assert second["error"]["code"] == 3
    assert "expected an image as JPEG, PNG, WebP or BMP" in second["error"]["message"]
    assert fourth["error"]["code"] == 3


@pytest.mark.parametrize(
    ("content", "content_type", "message"),
    [
        (png(255)[:-25], "image/png", "truncated or broken"),
        (b"", "image/png", "the image is empty: 0 bytes"),
        (b'{"images": []}', "application/json", "the request holds no image"),
        (b'{"images": "x"}', "application/json", "'images' must be an array of images in base64"),
        (b'{"images": ["\xc3\xa4"]}', "application/json", "image 0 is not base64"),
        (b'{"images": [7]}', "application/json", "image 0 is not a string in base64"),
        (b'{"images": ["AA=="], "top_k": -1}', "application/json", "'top_k' is -1, expected a number >= 0"),
        (b'{"images": ["AA=="], "id": 1}', "application/json", "'id' is 1, expected a string"),
        (b"{", "application/json", "failed to parse the request JSON buffer"),
    ],
)
def test_a_wrong_prediction_request_is_refused(call: Caller, content: bytes, content_type: str, message: str) -> None:
    response = call("POST", "/v1/models/vision/predict", content, {"Content-Type": content_type})
    assert message in response.json()["error"]
    assert response.status == 400


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Served) -> None:
    host, _, port = server.http.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**31}\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the request body is larger than the 67108864 bytes allowed" in answer


def test_a_chunked_body_is_put_together(server: Served) -> None:
    host, _, port = server.http.partition(":")
    document = body()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (document[:1], document[1:900], document[900:]))
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_caller_that_hangs_up_hurts_nobody(server: Served, call: Caller) -> None:
    host, _, port = server.http.partition(":")
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body())}\r\n\r\n".encode()
    for sent in (head, head + body()[:500], head + body()):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(sent)
    assert call("POST", INFER, body()).status == 200
