"""Where our server answers otherwise than Triton 2.51, each with its reason.

`docs/protocol-differences.md` is this table; `document.py` writes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from cases_grpc import UNKNOWN_ID, bad
from targets import Refused


class Difference(NamedTuple):
    """What ours answers to a case, and why."""

    ours: Any
    reason: str


IDENTITY = "It says what it is and what it has."
CLIENTS_MISTAKE = "The caller's mistake, which sending it again does not mend: a status that says so."
IGNORED = "Refused rather than ignored: the caller believes that it has an effect."
EARLIER = "The same mistake, noticed earlier or named more exactly."
NO_JSON = "Not JSON (RFC 8259), which has no such numbers; binary tensors carry them."
RAW_BY_NAME = "A raw request has to say so with a header length of 0."
NO_CUDA = "There is no CUDA shared memory here."
NO_TRACE = "There is no tracing through this protocol."
MORE = "We have it."

NO_OBJECT = Refused(400, "Unable to parse 'body': expected an object")
PARSE = Refused(400, "failed to parse the request JSON buffer: ")
NOT_LOADED = "', failed to poll from model repository"

GRPC = {
    "infer: a negative dim": Difference(
        bad(
            UNKNOWN_ID + "unexpected shape for input 'image' for model 'ident'. Expected [-1,1,28,28], got [-1,1,28,28]"
        ),
        "A dim below zero is a wrong shape; Triton's number of bytes has overflowed.",
    ),
    "infer: surplus raw contents": Difference(bad("expected 1 raw_input_contents, one for each input"), IGNORED),
    ": server's name": Difference("stn-serve", IDENTITY),
    ": server's extensions": Difference(
        [
            "binary_tensor_data",
            "classification",
            "logging",
            "model_configuration",
            "model_repository",
            "model_repository(unload_dependents)",
            "parameters",
            "schedule_policy",
            "statistics",
            "system_shared_memory",
        ],
        IDENTITY,
    ),
    ": model's platform": Difference(
        "onnxruntime_onnx", "The backend of the test's models; not a difference of servers."
    ),
    ": load an unknown model": Difference(Refused("NOT_FOUND", "failed to load 'nope" + NOT_LOADED), CLIENTS_MISTAKE),
    ": load from outside of the repository": Difference(
        Refused("NOT_FOUND", "failed to load '../ident" + NOT_LOADED), CLIENTS_MISTAKE
    ),
    ": unload an unknown model": Difference(Refused("NOT_FOUND", "failed to unload 'nope', no such model"), IGNORED),
    ": trace settings of an unknown model": Difference(
        Refused("NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        "As every other call with an unknown model.",
    ),
    ": trace switched on": Difference(
        Refused("UNIMPLEMENTED", "tracing is not supported: trace_level stays OFF"), NO_TRACE
    ),
    ": an unknown log setting": Difference(bad("unknown log setting 'nonsense', expected one of"), IGNORED),
    ": CUDA memory registered": Difference(Refused("UNIMPLEMENTED", "CUDA shared memory is not supported"), NO_CUDA),
}

HTTP = {
    "infer: no classes": Difference(
        Refused(400, "invalid value for 'classification' parameter, expected > 0"),
        "As over gRPC, where Triton refuses it too.",
    ),
    "infer: not JSON": Difference(PARSE, CLIENTS_MISTAKE),
    "infer: an array": Difference(NO_OBJECT, CLIENTS_MISTAKE),
    "infer: no inputs": Difference(
        Refused(400, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"), CLIENTS_MISTAKE
    ),
    "infer: inputs that are no array": Difference(
        Refused(400, "Unable to parse 'inputs': expected an array"), CLIENTS_MISTAKE
    ),
    "infer: an empty body": Difference(PARSE, RAW_BY_NAME),
    "infer: not a number": Difference(PARSE, NO_JSON),
    "infer: infinity": Difference(PARSE, NO_JSON),
    "infer: a number beyond FP32": Difference(
        Refused(400, "Unable to parse 'data' of input 'image': element out of the range of FP32"),
        "Refused rather than made infinite, and answered with `inf`, which is not JSON.",
    ),
    "infer: too few elements": Difference(
        Refused(400, "Unable to parse 'data' of input 'image': shape"), CLIENTS_MISTAKE
    ),
    "infer: elements of another type": Difference(
        Refused(400, "Unable to parse 'data' of input 'image': expected elements of FP32"), CLIENTS_MISTAKE
    ),
    "infer: a negative dim": Difference(
        Refused(400, "Unable to parse 'shape' of input 'image': expected integers >= 0"), CLIENTS_MISTAKE
    ),
    "infer: dims whose product overflows": Difference(
        Refused(400, "Unable to parse 'data' of input 'image': shape [1152921504606846976, "), EARLIER
    ),
    "infer: a header length that is no number": Difference(
        Refused(400, "inference header size should be in range (0, 4670), got: abc"), RAW_BY_NAME
    ),
    "infer: a header length in the middle of the JSON": Difference(PARSE, CLIENTS_MISTAKE),
    "infer: a raw request, too few bytes": Difference(
        Refused(
            400, UNKNOWN_ID + "input byte size mismatch for input 'image' for model 'ident'. Expected 3136, got 100"
        ),
        "The input's own name.",
    ),
    "infer: FP16, JSON": Difference([], MORE),
    ": index with a wrong filter": Difference(Refused(400, "'ready' must be a boolean"), CLIENTS_MISTAKE),
    ": index that is not JSON": Difference(PARSE, CLIENTS_MISTAKE),
    ": load an unknown model": Difference(Refused(404, "failed to load 'nope" + NOT_LOADED), CLIENTS_MISTAKE),
    ": unload an unknown model": Difference(Refused(404, "failed to unload 'nope', no such model"), IGNORED),
    ": a log setting of another type": Difference(Refused(400, "expect boolean for 'log_info'"), CLIENTS_MISTAKE),
    ": a region of memory that is not there": Difference(
        Refused(400, "Unable to open shared memory region: '/nope'"), CLIENTS_MISTAKE
    ),
    ": a region elsewhere in the file system": Difference(
        Refused(400, "'/../../etc/passwd' is not the name of a shared memory object"), CLIENTS_MISTAKE
    ),
}

OTHER = {
    "shared memory: output too small": Difference(
        bad("shared memory size specified with the request for output 'logits' (39 bytes)"), CLIENTS_MISTAKE
    ),
    "shared memory: larger than it is": Difference(bad("Invalid shared memory region: '"), CLIENTS_MISTAKE),
    "shared memory: nothing": Difference(bad("Invalid shared memory region: '"), CLIENTS_MISTAKE),
    "shared memory: not there": Difference(bad("Unable to open shared memory region: '/nope'"), CLIENTS_MISTAKE),
    "health: unknown": Difference(
        Refused("NOT_FOUND", "unknown service or model 'nope'"),
        "As grpc.health.v1 asks for; Triton answers SERVING to any name.",
    ),
    "health: watched": Difference("SERVING", MORE),
}

DIFFERENCES: dict[str, Difference] = {
    **{f"grpc{name if name[0] == ':' else ' ' + name}": difference for name, difference in GRPC.items()},
    **{f"http{name if name[0] == ':' else ' ' + name}": difference for name, difference in HTTP.items()},
    **OTHER,
}
