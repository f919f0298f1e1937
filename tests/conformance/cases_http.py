"""HTTP, request by request."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import numpy as np
import orjson
from cases import Case, Observe
from cases_grpc import elements_of, raw_of
from models import DATATYPES
from targets import LENGTH, NOT_JSON, Refused, Target, elements
from tritonclient.utils import triton_to_np_dtype

INFER = "/v2/models/ident/infer"
IMAGE = np.arange(784, dtype=np.float32).tobytes()
UNKNOWN_ID = "[request id: <id_unknown>] "
SHAPE = UNKNOWN_ID + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got "
ROW: dict[str, Any] = {
    "name": "logits",
    "datatype": "FP32",
    "shape": [1, 10],
    "data": [float(value) for value in range(10)],
}
BINARY_ROW = {**{name: ROW[name] for name in ("name", "datatype", "shape")}, "parameters": {"binary_data_size": 40}}
TOP_3 = {
    "name": "logits",
    "datatype": "BYTES",
    "shape": [1, 3],
    "data": [f"{value}.000000:{value}:digit_{value}" for value in (9, 8, 7)],
}


def answer(*outputs: Any, **fields: Any) -> dict[str, Any]:
    return {**fields, "model_name": "ident", "model_version": "1", "outputs": list(outputs)}


def bad(message: str, status: int = 400) -> Refused:
    return Refused(status, message)


def tensor(**changes: Any) -> dict[str, Any]:
    """The input of `ident`; what is changed to None is left out."""
    fields = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [float(i) for i in range(784)]}
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}


def body(*tensors: dict[str, Any], **fields: Any) -> bytes:
    return orjson.dumps({"inputs": list(tensors or (tensor(),)), **fields})


def wanted(**parameters: Any) -> list[dict[str, Any]]:
    return [{"name": "logits", "parameters": parameters}]


def binary(raw: bytes, size: int = 3136) -> tuple[bytes, dict[str, str]]:
    document = body(tensor(data=None, parameters={"binary_data_size": size}), parameters={"binary_data_output": True})
    return document + raw, {LENGTH: str(len(document))}


def ask(method: str, path: str, content: object = None, headers: dict[str, str] | None = None) -> Observe:
    return lambda target: target.ask(method, path, content, headers)


def status(method: str, path: str) -> Observe:
    return lambda target: target.request(method, path).status


def raw_answer(content: bytes, headers: dict[str, str]) -> Observe:
    """Media type, JSON and raw tensors of an answer in the binary extension, or what was refused."""

    def observe(target: Target) -> Any:
        response = target.request("POST", INFER, content, headers)
        if response.status != 200:
            return Refused(response.status, orjson.loads(response.data)["error"])
        length = int(response.headers[LENGTH])
        return response.headers["Content-Type"], orjson.loads(response.data[:length]), response.data[length:]

    return observe


RAW_ROW = ("application/octet-stream", answer(BINARY_ROW), IMAGE[:40])

PARSE = "failed to parse the request JSON buffer: "
INFERENCE: dict[str, tuple[bytes, Any]] = {
    "JSON": (body(), answer(ROW)),
    "an id": (body(id="7"), answer(ROW, id="7")),
    "nested data": (body(tensor(data=np.arange(784.0).reshape(1, 1, 28, 28).tolist())), answer(ROW)),
    "whole numbers as FP32": (body(tensor(data=list(range(784)))), answer(ROW)),
    "an output asked for": (body(outputs=[{"name": "logits"}]), answer(ROW)),
    "parameters without a meaning": (body(parameters={"mine": "x"}), answer(ROW)),
    "timeout and priority": (body(parameters={"timeout": 10_000_000, "priority": 1}), answer(ROW)),
    "classes": (body(outputs=wanted(classification=3)), answer(TOP_3)),
    "no classes": (
        body(outputs=wanted(classification=0)),
        answer(ROW),
    ),
    "a reserved parameter": (
        body(parameters={"triton_x": True}),
        bad("parameter keys starting with 'triton_' are reserved"),
    ),
    "not JSON": (b"{nonsense", bad(PARSE, 500)),
    "an array": (b"[]", bad("Unable to parse 'inputs': attempt to access non-existing object member 'inputs'", 500)),
    "no inputs": (b"{}", bad("Unable to parse 'inputs': attempt to access non-existing object member 'inputs'", 500)),
    "inputs that are no array": (b'{"inputs":7}', bad("", 500)),
    "an empty body": (b"", bad(UNKNOWN_ID + "input byte size mismatch for input 'raw_input' for model 'ident'.")),
    "JSON nested a thousand deep": (b'{"inputs":' + b"[" * 1000 + b"]" * 1000 + b"}", bad("")),
    "not a number": (body().replace(b"783.0", b"NaN"), answer(ROW)),
    "infinity": (body().replace(b"783.0", b"Infinity"), answer(ROW)),
    "a number beyond FP32": (body(tensor(data=[1e300] * 784)), NOT_JSON),
    "an empty list of inputs": (
        b'{"inputs":[]}',
        bad(
            UNKNOWN_ID + "expected 1 inputs but got 0 inputs for model 'ident'. Got input(s) [], but missing required "
            "input(s) ['image']. Please provide all required input(s)."
        ),
    ),
    "unknown input": (body(tensor(name="wrong")), bad("unexpected inference input 'wrong' for model 'ident'")),
    "an input twice": (body(tensor(), tensor()), bad(UNKNOWN_ID + "input 'image' already exists in request")),
    "unknown output": (body(outputs=[{"name": "no"}]), bad("unexpected inference output 'no' for model 'ident'")),
    "another datatype": (
        body(tensor(datatype="INT32", data=[0] * 784)),
        bad(UNKNOWN_ID + "inference input 'image' data-type is 'INT32', but model 'ident' expects 'FP32'"),
    ),
    "a datatype that does not exist": (body(tensor(datatype="FP33")), bad("invalid datatype for input image")),
    "another size": (body(tensor(shape=[1, 1, 28, 27], data=[0] * 756)), bad(SHAPE + "[1,1,28,27]. NOTE: Setting")),
    "another rank": (body(tensor(shape=[1, 28, 28])), bad(SHAPE + "[1,28,28]. NOTE: Setting")),
    "too many rows": (
        body(tensor(shape=[9, 1, 28, 28], data=[0] * 9 * 784)),
        bad(UNKNOWN_ID + "inference request batch-size must be <= 8 for 'ident'"),
    ),
    "too few elements": (body(tensor(data=[0.0])), bad("Unable to parse 'data'", 500)),
    "elements of another type": (body(tensor(data=["a"] * 784)), bad("Unable to parse 'data'", 500)),
    "a negative dim": (body(tensor(shape=[1, 1, -28, 28])), bad("Unable to parse 'shape'", 500)),
    "dims whose product overflows": (body(tensor(shape=[2**60] * 4)), bad(SHAPE + "[1152921504606846976,")),
    "no data": (
        body(tensor(data=None)),
        bad("Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters'"),
    ),
    "data twice": (
        body(tensor(parameters={"binary_data_size": 0})),
        bad("Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters'"),
    ),
}

RAW: dict[str, tuple[tuple[bytes, dict[str, str]], Any]] = {
    "binary": (binary(IMAGE), RAW_ROW),
    "binary, too few bytes": (
        binary(IMAGE[:-4]),
        bad("unexpected size for input 'image', expecting 4 additional bytes for model 'ident'"),
    ),
    "binary, too many bytes": (binary(IMAGE + b"more"), bad("unexpected additional input data for model 'ident'")),
    "binary, another size": (
        binary(IMAGE[:100], 100),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 100"),
    ),
    "a header length beyond the body": (
        (body(), {LENGTH: "99999999"}),
        bad("inference header size should be in range"),
    ),
    "a negative header length": ((body(), {LENGTH: "-1"}), bad("inference header size should be in range (0, ")),
    "a header length that is no number": (
        (body(), {LENGTH: "abc"}),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'raw_input' for model 'ident'."),
    ),
    "a header length in the middle of the JSON": ((body(), {LENGTH: "20"}), bad(PARSE, 500)),
    "a raw request": ((IMAGE, {LENGTH: "0"}), RAW_ROW),
    "a raw request, too few bytes": (
        (IMAGE[:100], {LENGTH: "0"}),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'raw_input' for model 'ident'. Expected 3136, got 100"),
    ),
}

NOT_FOUND = Refused(404, "Not Found")
NOT_ALLOWED = Refused(405, "Method Not Allowed")
UNKNOWN = Refused(404, "Request for unknown model: 'nope' is not found")
CONTROL: dict[str, tuple[Observe, Any]] = {
    "live": (status("GET", "/v2/health/live"), 200),
    "ready": (status("GET", "/v2/health/ready"), 200),
    "model is ready": (status("GET", "/v2/models/ident/ready"), 200),
    "version is ready": (status("GET", "/v2/models/ident/versions/1/ready"), 200),
    "unknown version is not ready": (
        ask("GET", "/v2/models/ident/versions/2/ready"),
        Refused(400, "Model version not ready"),
    ),
    "unknown model is not ready": (ask("GET", "/v2/models/nope/ready"), Refused(400, "Model version not ready")),
    "metadata": (
        lambda target: {**target.ask("GET", "/v2/models/ident"), "platform": ""},
        {
            "name": "ident",
            "versions": ["1"],
            "platform": "",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
        },
    ),
    "metadata of an unknown model": (ask("GET", "/v2/models/nope"), UNKNOWN),
    "metadata of an unknown version": (
        ask("GET", "/v2/models/ident/versions/2"),
        Refused(404, "Request for unknown model: 'ident' version 2 is not found"),
    ),
    "statistics of an unknown model": (
        ask("GET", "/v2/models/nope/stats"),
        Refused(400, "requested model 'nope' is not available"),
    ),
    "configuration": (
        lambda target: target.ask("GET", "/v2/models/ident/config")["input"][0]["data_type"],
        "TYPE_FP32",
    ),
    "members of the configuration": (
        lambda target: sorted(set(target.ask("GET", "/v2/models/ident/config"))),
        sorted(
            [
                "name",
                "platform",
                "backend",
                "runtime",
                "version_policy",
                "max_batch_size",
                "input",
                "output",
                "batch_input",
                "batch_output",
                "optimization",
                "dynamic_batching",
                "instance_group",
                "default_model_filename",
                "cc_model_filenames",
                "metric_tags",
                "parameters",
                "model_warmup",
            ]
        ),
    ),
    "infer with an unknown model": (ask("POST", "/v2/models/nope/infer", body()), UNKNOWN),
    "infer with an unknown version": (
        ask("POST", "/v2/models/ident/versions/3/infer", body()),
        Refused(404, "Request for unknown model: 'ident' version 3 is not found"),
    ),
    "infer with version 1": (ask("POST", "/v2/models/ident/versions/1/infer", body()), answer(ROW)),
    "a version that is no number": (ask("POST", "/v2/models/ident/versions/x/infer", body()), NOT_FOUND),
    "a path that does not exist": (ask("GET", "/nothing"), NOT_FOUND),
    "a slash too many": (ask("GET", "/v2/"), NOT_FOUND),
    "GET of infer": (ask("GET", INFER), NOT_ALLOWED),
    "PUT of infer": (ask("PUT", INFER, b"{}"), NOT_ALLOWED),
    "index": (
        lambda target: sorted(target.ask("POST", "/v2/repository/index"), key=lambda entry: entry["name"]),
        [{"name": name, "version": "1", "state": "READY"} for name in ("echo", "half", "ident", "vector")],
    ),
    "index with a wrong filter": (ask("POST", "/v2/repository/index", {"ready": 7}), Refused(500, "attempt to access")),
    "index that is not JSON": (ask("POST", "/v2/repository/index", b"["), Refused(500, PARSE)),
    "load": (ask("POST", "/v2/repository/models/vector/load", {}), 200),
    "load an unknown model": (
        ask("POST", "/v2/repository/models/nope/load", {}),
        Refused(500, "failed to load 'nope', failed to poll from model repository"),
    ),
    "unload an unknown model": (ask("POST", "/v2/repository/models/nope/unload", {}), 200),
    "log settings": (
        lambda target: sorted(target.ask("GET", "/v2/logging")),
        ["log_error", "log_file", "log_format", "log_info", "log_verbose_level", "log_warning"],
    ),
    "log verbosity": (
        lambda target: target.ask("POST", "/v2/logging", {"log_verbose_level": 0})["log_verbose_level"],
        0,
    ),
    "a log file": (
        ask("POST", "/v2/logging", {"log_file": "/tmp/x"}),
        Refused(501, "log file location can not be updated through network protocol"),
    ),
    "a log setting of another type": (ask("POST", "/v2/logging", {"log_info": 7}), Refused(500, "attempt to access")),
    "trace settings": (
        ask("GET", "/v2/trace/setting"),
        {
            "trace_level": ["OFF"],
            "trace_rate": "1000",
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "triton",
        },
    ),
    "trace rate": (
        lambda target: target.ask("POST", "/v2/trace/setting", {"trace_rate": "1000"})["trace_rate"],
        "1000",
    ),
    "shared memory": (ask("GET", "/v2/systemsharedmemory/status"), []),
    "an unknown region": (
        ask("GET", "/v2/systemsharedmemory/region/x/status"),
        Refused(404, "Unable to find system shared memory region: 'x'"),
    ),
    "a region without a key": (
        ask("POST", "/v2/systemsharedmemory/region/x/register", {}),
        Refused(400, "Shared memory register request has no 'key' field"),
    ),
    "a region without a size": (
        ask("POST", "/v2/systemsharedmemory/region/x/register", {"key": "/x"}),
        Refused(400, "Shared memory register request has no 'byte_size' field"),
    ),
    "a region of memory that is not there": (
        ask("POST", "/v2/systemsharedmemory/region/x/register", {"key": "/nope", "byte_size": 8}),
        Refused(500, "Unable to open shared memory region: '/nope'"),
    ),
    "a region elsewhere in the file system": (
        ask("POST", "/v2/systemsharedmemory/region/x/register", {"key": "/../../etc/passwd", "byte_size": 8}),
        Refused(500, "Unable to open shared memory region: '/../../etc/passwd'"),
    ),
    "unregister an unknown region": (ask("POST", "/v2/systemsharedmemory/region/x/unregister", b""), 200),
    "CUDA memory": (ask("GET", "/v2/cudasharedmemory/status"), []),
}


def compressed(encoding: str) -> Observe:
    """A request and its answer in an encoding."""

    def observe(target: Target) -> Any:
        content = gzip.compress(body()) if encoding == "gzip" else zlib.compress(body())
        headers = {"Content-Encoding": encoding, "Accept-Encoding": encoding}
        response = target.request("POST", INFER, content, headers)
        decompress = gzip.decompress if encoding == "gzip" else zlib.decompress
        return response.status, response.headers.get("Content-Encoding"), orjson.loads(decompress(response.data))

    return observe


def echo(model: str, datatypes: list[str], rows: int, binary_data: bool) -> Observe:
    """Datatypes whose elements do not come back as they went, all in one request."""
    arrays = {name: elements_of(name, rows) for name in datatypes}
    raw = {name: raw_of(array) if binary_data else b"" for name, array in arrays.items()}
    inputs = [
        {"name": f"x_{name}", "datatype": name, "shape": array.shape}
        | ({"parameters": {"binary_data_size": len(raw[name])}} if binary_data else {"data": array.tolist()})
        for name, array in arrays.items()
    ]
    document = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary_data}})
    headers = {LENGTH: str(len(document))} if binary_data else {}

    def observe(target: Target) -> Any:
        response = target.request("POST", f"/v2/models/{model}/infer", document + b"".join(raw.values()), headers)
        if response.status != 200:
            return Refused(response.status, orjson.loads(response.data)["error"])
        returned = _elements(response.data, int(response.headers.get(LENGTH, len(response.data))))
        return [name for name, array in arrays.items() if not np.array_equal(returned[f"y_{name}"], array.ravel())]

    return observe


def _elements(content: bytes, length: int) -> dict[str, list[Any]]:
    found = {}
    offset = length
    for output in orjson.loads(content[:length])["outputs"]:
        if "data" in output:
            dtype = triton_to_np_dtype(output["datatype"])
            found[output["name"]] = np.array(output["data"], dtype).tolist()
        else:
            end = offset + output["parameters"]["binary_data_size"]
            found[output["name"]] = elements(output["datatype"], content[offset:end])
            offset = end
    return found


def vector(length: int) -> Observe:
    """A raw request whose length is the tensor's."""
    return lambda target: (
        target.request(
            "POST", "/v2/models/vector/infer", np.arange(length, dtype=np.int32).tobytes(), {LENGTH: "0"}
        ).status
    )


CASES = [
    *(
        Case(f"http infer: {name}", ask("POST", INFER, content), expected)
        for name, (content, expected) in INFERENCE.items()
    ),
    *(Case(f"http infer: {name}", raw_answer(*request), expected) for name, (request, expected) in RAW.items()),
    *(Case(f"http: {name}", observe, expected) for name, (observe, expected) in CONTROL.items()),
    *(
        Case(f"http infer: {encoding}", compressed(encoding), (200, encoding, answer(ROW)))
        for encoding in ("gzip", "deflate")
    ),
    Case(
        "http infer: an encoding that does not exist",
        ask("POST", INFER, body(), {"Content-Encoding": "zstd"}),
        Refused(501, "Unsupported compression type"),
    ),
    Case(
        "http infer: not what the encoding says",
        ask("POST", INFER, body(), {"Content-Encoding": "gzip"}),
        Refused(400, ""),
    ),
    *(
        Case(
            f"http infer: every datatype, {form}, {rows} rows",
            echo("echo", list(DATATYPES), rows, form == "binary"),
            [],
        )
        for form in ("binary", "JSON")
        for rows in (1, 4)
    ),
    Case("http infer: FP16, binary", echo("half", ["FP16"], 2, binary_data=True), []),
    Case(
        "http infer: FP16, JSON",
        echo("half", ["FP16"], 2, binary_data=False),
        Refused(400, "receiving FP16 data via JSON is not supported"),
    ),
    Case("http infer: a raw request of any length", vector(5), 200),
]
