"""gRPC, message by message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases import Case, Observe
from models import DATATYPES
from targets import Refused, Target, Tensor, grpc_answer, tensors
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

UNKNOWN_ID = "[request id: <id_unknown>] "
SHAPE = UNKNOWN_ID + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got "
ROW: Tensor = ("logits", "FP32", [1, 10], [float(value) for value in range(10)])
TOP_3: Tensor = ("logits", "BYTES", [1, 3], [f"{value}.000000:{value}:digit_{value}" for value in (9, 8, 7)])


def bad(message: str) -> Refused:
    return Refused("INVALID_ARGUMENT", message)


def ident_request(rows: int = 1) -> Any:
    image = np.arange(rows * 784, dtype=np.float32)
    request = service_pb2.ModelInferRequest(model_name="ident", raw_input_contents=[image.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=[rows, 1, 28, 28])
    return request


def infer(change: Callable[[Any], object]) -> Observe:
    """The outputs of a request to `ident` after a change."""

    def observe(target: Target) -> Any:
        request = ident_request()
        change(request)
        return grpc_answer(lambda: tensors(target.stub.ModelInfer(request)))

    return observe


def ask(method: str, *, see: Callable[[Any], Any] = lambda _: "OK", **fields: Any) -> Observe:
    """A control call, and what there is to see of its answer."""

    def observe(target: Target) -> Any:
        request = getattr(service_pb2, f"{method}Request")(**fields)
        return grpc_answer(lambda: see(getattr(target.stub, method)(request)))

    return observe


def parameter(of: Any, name: str, **value: Any) -> None:
    of.parameters[name].CopyFrom(service_pb2.InferParameter(**value))


def output(request: Any, **parameters: Any) -> None:
    request.outputs.add(name="logits")
    for name, value in parameters.items():
        parameter(request.outputs[-1], name, **value)


def typed(request: Any, **contents: Any) -> None:
    del request.raw_input_contents[:]
    request.inputs[0].contents.CopyFrom(service_pb2.InferTensorContents(**contents))


INFERENCE = {
    "raw contents": (lambda _: None, [ROW]),
    "typed contents": (lambda r: typed(r, fp32_contents=range(784)), [ROW]),
    "an output asked for": (output, [ROW]),
    "an output asked for twice": (lambda r: r.outputs.extend([r.outputs.add(name="logits")]), [ROW]),
    "parameters without a meaning": (lambda r: parameter(r, "mine", string_param="x"), [ROW]),
    "timeout": (lambda r: parameter(r, "timeout", int64_param=10_000_000), [ROW]),
    "priority": (lambda r: parameter(r, "priority", uint64_param=1), [ROW]),
    "final response wanted": (lambda r: parameter(r, "triton_enable_empty_final_response", bool_param=True), [ROW]),
    "version 1": (lambda r: setattr(r, "model_version", "1"), [ROW]),
    "classes": (lambda r: output(r, classification={"int64_param": 3}), [TOP_3]),
    "more classes than there are": (
        lambda r: output(r, classification={"int64_param": 99}),
        [("logits", "BYTES", [1, 10], [f"{i}.000000:{i}:digit_{i}" for i in reversed(range(10))])],
    ),
    "no classes": (
        lambda r: output(r, classification={"int64_param": 0}),
        bad("invalid value for 'classification' parameter, expected >"),
    ),
    "classes as a string": (
        lambda r: output(r, classification={"string_param": "3"}),
        bad("invalid value type for 'classification' parameter, expected "),
    ),
    "timeout as a string": (
        lambda r: parameter(r, "timeout", string_param="1"),
        bad("invalid value type for 'timeout' parameter, expected "),
    ),
    "priority as a string": (
        lambda r: parameter(r, "priority", string_param="1"),
        bad("invalid value type for 'priority' parameter, expected "),
    ),
    "final response as a number": (
        lambda r: parameter(r, "triton_enable_empty_final_response", int64_param=1),
        bad("invalid value type for 'triton_enable_empty_final_response' parameter, expected "),
    ),
    "a reserved parameter": (
        lambda r: parameter(r, "triton_x", bool_param=True),
        bad("parameter keys starting with 'triton_' are reserved"),
    ),
    "unknown input": (
        lambda r: setattr(r.inputs[0], "name", "w"),
        bad("unexpected inference input 'w' for model 'ident'"),
    ),
    "no input": (
        lambda r: (r.inputs.pop(), r.raw_input_contents.pop()),
        bad(
            UNKNOWN_ID + "expected 1 inputs but got 0 inputs for model 'ident'. Got input(s) [], but missing required "
            "input(s) ['image']. Please provide all required input(s)."
        ),
    ),
    "an input twice": (
        lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(r.raw_input_contents[0])),
        bad(UNKNOWN_ID + "input 'image' already exists in request"),
    ),
    "unknown output": (
        lambda r: r.outputs.add(name="zz"),
        bad("unexpected inference output 'zz' for model 'ident'"),
    ),
    "another datatype": (
        lambda r: setattr(r.inputs[0], "datatype", "INT32"),
        bad(UNKNOWN_ID + "inference input 'image' data-type is 'INT32', but model 'ident' expects 'FP32'"),
    ),
    "no datatype": (
        lambda r: setattr(r.inputs[0], "datatype", ""),
        bad(UNKNOWN_ID + "inference input 'image' data-type is '<invalid>', but model 'ident' expects 'FP32'"),
    ),
    "another size": (lambda r: r.inputs[0].shape.__setitem__(3, 27), bad(SHAPE + "[1,1,28,27]. NOTE: Setting")),
    "another rank": (lambda r: r.inputs[0].shape.pop(0), bad(SHAPE + "[1,28,28]. NOTE: Setting")),
    "too many rows": (
        lambda r: r.inputs[0].shape.__setitem__(0, 9),
        bad(UNKNOWN_ID + "inference request batch-size must be <= 8 for 'ident'"),
    ),
    "a negative dim": (
        lambda r: r.inputs[0].shape.__setitem__(0, -1),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 1"),
    ),
    "too few bytes": (
        lambda r: r.raw_input_contents.__setitem__(0, bytes(3132)),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 3132"),
    ),
    "too few elements": (
        lambda r: typed(r, fp32_contents=[0.0] * 10),
        bad(UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 40"),
    ),
    "elements of another datatype": (
        lambda r: typed(r, int_contents=[0] * 784),
        bad("unexpected explicit tensor data for input tensor 'image' for model 'ident'"),
    ),
    "no data": (
        lambda r: r.raw_input_contents.pop(),
        bad("unable to find data for input tensor 'image' for model 'ident' in request."),
    ),
    "raw and typed contents": (
        lambda r: r.inputs[0].contents.fp32_contents.append(1.0),
        bad("contents field must not be specified when using raw_input_contents for 'image' for model 'ident'"),
    ),
    "surplus raw contents": (lambda r: r.raw_input_contents.append(b"surplus"), [ROW]),
    "unknown model": (
        lambda r: setattr(r, "model_name", "nope"),
        Refused("NOT_FOUND", "Request for unknown model: 'nope' is not found"),
    ),
    "no model": (
        lambda r: setattr(r, "model_name", ""),
        Refused("NOT_FOUND", "Request for unknown model: '' is not found"),
    ),
    "unknown version": (
        lambda r: setattr(r, "model_version", "9"),
        Refused("NOT_FOUND", "Request for unknown model: 'ident' version 9 is not found"),
    ),
    "a version that is no number": (
        lambda r: setattr(r, "model_version", "x"),
        bad("failed to get model version from specified version string 'x'"),
    ),
}

UNKNOWN = Refused("NOT_FOUND", "Request for unknown model: 'nope' is not found")
BAD_VERSION = bad("failed to get model version from specified version string 'x'")
NO_REPOSITORY = Refused("UNIMPLEMENTED", "'repository_name' specification is not supported")


def trace_level(response: Any) -> list[str]:
    return list(response.settings["trace_level"].value)


def verbosity(response: Any) -> int:
    return int(response.settings["log_verbose_level"].uint32_param)


CONTROL: dict[str, tuple[Observe, Any]] = {
    "server is live": (ask("ServerLive", see=lambda r: r.live), True),
    "server is ready": (ask("ServerReady", see=lambda r: r.ready), True),
    "model is ready": (ask("ModelReady", name="ident", see=lambda r: r.ready), True),
    "unknown model is not ready": (ask("ModelReady", name="nope", see=lambda r: r.ready), False),
    "unknown version is not ready": (ask("ModelReady", name="ident", version="7", see=lambda r: r.ready), False),
    "readiness of version x": (ask("ModelReady", name="ident", version="x"), BAD_VERSION),
    "server's name": (ask("ServerMetadata", see=lambda r: r.name), "triton"),
    "server's extensions": (
        ask("ServerMetadata", see=lambda r: sorted(r.extensions)),
        sorted(
            [
                "classification",
                "sequence",
                "model_repository",
                "model_repository(unload_dependents)",
                "schedule_policy",
                "model_configuration",
                "system_shared_memory",
                "cuda_shared_memory",
                "binary_tensor_data",
                "parameters",
                "statistics",
                "trace",
                "logging",
            ]
        ),
    ),
    "model's inputs": (
        ask("ModelMetadata", name="ident", see=lambda r: [(t.name, t.datatype, list(t.shape)) for t in r.inputs]),
        [("image", "FP32", [-1, 1, 28, 28])],
    ),
    "model's platform": (ask("ModelMetadata", name="ident", see=lambda r: r.platform), "python"),
    "model's versions": (ask("ModelMetadata", name="ident", see=lambda r: list(r.versions)), ["1"]),
    "metadata of an unknown model": (ask("ModelMetadata", name="nope"), UNKNOWN),
    "metadata of version x": (ask("ModelMetadata", name="ident", version="x"), BAD_VERSION),
    "model's configuration": (
        ask("ModelConfig", name="ident", see=lambda r: (r.config.name, r.config.max_batch_size, len(r.config.input))),
        ("ident", 8, 1),
    ),
    "configuration of an unknown model": (ask("ModelConfig", name="nope"), UNKNOWN),
    "statistics of an unknown model": (
        ask("ModelStatistics", name="nope"),
        bad("requested model 'nope' is not available"),
    ),
    "statistics of an unknown version": (
        ask("ModelStatistics", name="ident", version="7"),
        bad("requested model version is not available for model 'ident'"),
    ),
    "statistics of version x": (ask("ModelStatistics", name="ident", version="x"), BAD_VERSION),
    "index": (
        ask("RepositoryIndex", see=lambda r: sorted((m.name, m.version, m.state) for m in r.models)),
        [(name, "1", "READY") for name in ("echo", "half", "ident", "vector")],
    ),
    "index of a named repository": (ask("RepositoryIndex", repository_name="other"), NO_REPOSITORY),
    "load": (ask("RepositoryModelLoad", model_name="vector"), "OK"),
    "load an unknown model": (
        ask("RepositoryModelLoad", model_name="nope"),
        Refused("INTERNAL", "failed to load 'nope', failed to poll from model repository"),
    ),
    "load from outside of the repository": (
        ask("RepositoryModelLoad", model_name="../ident"),
        Refused("INTERNAL", "failed to load '../ident', failed to poll from model repository"),
    ),
    "load from a named repository": (
        ask("RepositoryModelLoad", model_name="ident", repository_name="other"),
        NO_REPOSITORY,
    ),
    "load with an unknown parameter": (
        ask("RepositoryModelLoad", model_name="ident", parameters={"x": {"string_param": "y"}}),
        bad("unrecognized load parameter 'x'."),
    ),
    "unload an unknown model": (ask("RepositoryModelUnload", model_name="nope"), "OK"),
    "trace settings": (ask("TraceSetting", see=trace_level), ["OFF"]),
    "trace settings of an unknown model": (
        ask("TraceSetting", model_name="nope"),
        bad("Request for unknown model : nope"),
    ),
    "trace switched on": (
        ask("TraceSetting", settings={"trace_level": {"value": ["TIMESTAMPS"]}}),
        bad("Attempting to set invalid trace setting :trace file name is not given"),
    ),
    "trace switched off": (ask("TraceSetting", settings={"trace_level": {"value": ["OFF"]}}, see=trace_level), ["OFF"]),
    "log verbosity": (
        ask("LogSettings", settings={"log_verbose_level": {"uint32_param": 0}}, see=verbosity),
        0,
    ),
    "a log setting of another type": (
        ask("LogSettings", settings={"log_info": {"string_param": "x"}}),
        bad("expect boolean for 'log_info'"),
    ),
    "an unknown log setting": (ask("LogSettings", settings={"nonsense": {"bool_param": True}}), "OK"),
    "CUDA memory": (ask("CudaSharedMemoryStatus", see=lambda r: len(r.regions)), 0),
    "CUDA memory registered": (
        ask("CudaSharedMemoryRegister", name="c", raw_handle=b"x", byte_size=4),
        bad("failed to register shared memory region: invalid args"),
    ),
    "an unknown CUDA region": (
        ask("CudaSharedMemoryStatus", name="c"),
        Refused("NOT_FOUND", "Unable to find cuda shared memory region: 'c'"),
    ),
    "CUDA memory unregistered": (ask("CudaSharedMemoryUnregister", name="c"), "OK"),
}


def elements_of(datatype: str, rows: int = 1) -> np.ndarray[Any, Any]:
    """Three elements a row, the extremes among them."""
    if datatype == "BYTES":
        row = np.array(["", "grüße", "x" * 300], object)
    elif datatype == "BOOL":
        row = np.array([True, False, True])
    else:
        dtype = np.dtype(triton_to_np_dtype(datatype))
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        row = np.array([limits.min, 1, limits.max], dtype)
    return np.stack([row] * rows)


def raw_of(array: np.ndarray[Any, Any]) -> bytes:
    return bytes(serialize_byte_tensor(array).item()) if array.dtype == object else array.tobytes()


def echo_request(model: str, datatypes: list[str], rows: int, form: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for datatype in datatypes:
        array = elements_of(datatype, rows)
        request.inputs.add(name=f"x_{datatype}", datatype=datatype, shape=array.shape)
        if form == "raw":
            request.raw_input_contents.append(raw_of(array))
        else:
            fill(request.inputs[-1].contents, datatype, array)
    return request


def fill(contents: Any, datatype: str, array: np.ndarray[Any, Any]) -> None:
    if datatype == "BYTES":
        contents.bytes_contents.extend(element.encode() for element in array.ravel())
        return
    field = (
        datatype.lower()
        if datatype[-2:] == "64" or datatype in ("BOOL", "FP32")
        else datatype.lower().rstrip("0123456789")
    )
    getattr(contents, f"{field}_contents").extend(array.ravel().tolist())


def echo(model: str, datatypes: list[str], rows: int, form: str) -> Observe:
    """Datatypes whose elements do not come back as they went, all in one request."""

    def observe(target: Target) -> Any:
        request = echo_request(model, datatypes, rows, form)
        response = grpc_answer(lambda: target.stub.ModelInfer(request))
        if isinstance(response, Refused):
            return response
        returned = {
            output.name: raw for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        }
        return [name for name in datatypes if returned[f"y_{name}"] != raw_of(elements_of(name, rows))]

    return observe


def batch(rows: int) -> Observe:
    def observe(target: Target) -> Any:
        return grpc_answer(lambda: tensors(target.stub.ModelInfer(ident_request(rows)))[0][2:])

    return observe


def batch_answer(rows: int) -> tuple[list[int], list[float]]:
    return [rows, 10], [float(row * 784 + column) for row in range(rows) for column in range(10)]


CASES = [
    *(Case(f"grpc infer: {name}", infer(change), expected) for name, (change, expected) in INFERENCE.items()),
    *(Case(f"grpc: {name}", observe, expected) for name, (observe, expected) in CONTROL.items()),
    *(Case(f"grpc infer: {rows} rows", batch(rows), batch_answer(rows)) for rows in (1, 2, 7, 8)),
    *(
        Case(f"grpc infer: every datatype, {form}, {rows} rows", echo("echo", list(DATATYPES), rows, form), [])
        for form in ("raw", "typed")
        for rows in (1, 4)
    ),
    Case("grpc infer: FP16, raw", echo("half", ["FP16"], 2, "raw"), []),
]
