"""A tensor request held against a model's signature, before it may queue. Messages follow Triton's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

from stn_serve.errors import InvalidRequest
from stn_serve.scheduling import AS_CONFIGURED, Urgency
from stn_serve.shared_memory import Span
from stn_serve.signature import ModelSignature, TensorSignature
from stn_serve.tensors import Buffer, byte_size, from_raw

Array = NDArray[Any]

BATCH_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclass(slots=True)
class WireTensor:
    """An input as a transport found it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer | Array | Span
    """Raw bytes, or an array of the datatype with as many elements as the caller sent, or where its bytes lie."""


@dataclass(slots=True)
class RequestedOutput:
    """An output as its caller wants it."""

    name: str
    class_count: int = 0
    """As strings of its so many largest elements; 0 for the tensor itself."""
    span: Span | None = None
    """Where to put it, if not into the response."""


@dataclass(kw_only=True, slots=True)
class InferRequest:
    """A tensor request as a transport found it."""

    model_name: str
    model_version: str = ""
    id: str = ""
    inputs: Sequence[WireTensor] = ()
    outputs: Sequence[RequestedOutput] = ()
    """None means all."""
    urgency: Urgency = AS_CONFIGURED


class ValidRequest(NamedTuple):
    """What the model can run."""

    inputs: dict[str, Array]
    outputs: Sequence[str]
    rows: int


def validate(request: InferRequest, model: ModelSignature) -> ValidRequest:
    """The request as arrays of the model's shapes and datatypes.

    Raises:
        InvalidRequest: an input or output is unknown, missing, given twice, or of another datatype, shape or size.
    """
    tensors = _by_name(request, model)
    outputs = _outputs(request, model)
    missing = [spec.name for spec in model.inputs if spec.name not in tensors]
    if missing:
        raise _refusal(
            request,
            f"expected {len(model.inputs)} inputs but got {len(tensors)} inputs for model '{model.name}'. "
            f"Got input(s) {list(tensors)}, but missing required input(s) {missing}. "
            "Please provide all required input(s).",
        )
    rows = _rows(request, model, tensors)
    return ValidRequest(
        {spec.name: _array(request, model, spec, tensors[spec.name]) for spec in model.inputs}, outputs, rows
    )


def _by_name(request: InferRequest, model: ModelSignature) -> dict[str, WireTensor]:
    known = {spec.name for spec in model.inputs}
    tensors: dict[str, WireTensor] = {}
    for tensor in request.inputs:
        if tensor.name not in known:
            raise InvalidRequest(f"unexpected inference input '{tensor.name}' for model '{model.name}'")
        if tensor.name in tensors:
            raise _refusal(request, f"input '{tensor.name}' already exists in request")
        tensors[tensor.name] = tensor
    return tensors


def _outputs(request: InferRequest, model: ModelSignature) -> Sequence[str]:
    known = [spec.name for spec in model.outputs]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(f"unexpected inference output '{output.name}' for model '{model.name}'")
        if output.class_count:
            _check_classes(output.name, model)
    return [output.name for output in request.outputs] or known


def _check_classes(name: str, model: ModelSignature) -> None:
    datatype = next(spec.datatype for spec in model.outputs if spec.name == name)
    if datatype in ("BYTES", "BOOL"):
        raise InvalidRequest(
            f"class result not available for output '{name}' due to unsupported type '{datatype}' "
            f"of model '{model.name}'"
        )


def _rows(request: InferRequest, model: ModelSignature, tensors: dict[str, WireTensor]) -> int:
    """Rows of the request, the same in every input; 1 for a model that does not batch."""
    if not model.max_batch_size:
        return 1
    sizes = {name: tensor.shape[0] if tensor.shape else 0 for name, tensor in tensors.items()}
    rows = next(iter(sizes.values()))
    if rows > model.max_batch_size:
        raise _refusal(request, f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'")
    if any(size != rows for size in sizes.values()):
        raise _refusal(request, f"inputs of one request differ in batch size for model '{model.name}': {sizes}")
    return rows


def _array(request: InferRequest, model: ModelSignature, spec: TensorSignature, tensor: WireTensor) -> Array:
    if tensor.datatype != spec.datatype:
        raise _refusal(
            request,
            f"inference input '{spec.name}' data-type is '{tensor.datatype or '<invalid>'}', "
            f"but model '{model.name}' expects '{spec.datatype}'",
        )
    if not _shape_fits(tensor.shape, spec):
        raise _refusal(
            request,
            f"unexpected shape {_where(spec, model)}. Expected {_brackets(spec.shape)}, got {_brackets(tensor.shape)}."
            + (BATCH_NOTE if spec.batched else ""),
        )
    expected = byte_size(spec.datatype, tensor.shape)
    received = tensor.data.nbytes if hasattr(tensor.data, "nbytes") else len(tensor.data)
    if expected is not None and expected != received:
        raise _refusal(request, f"input byte size mismatch {_where(spec, model)}. Expected {expected}, got {received}")
    data = tensor.data.read() if isinstance(tensor.data, Span) else tensor.data
    if not isinstance(data, Buffer):
        return data.reshape(tensor.shape)
    try:
        return from_raw(data, spec.datatype, tensor.shape)
    except ValueError as error:
        raise _refusal(request, f"{error} {_where(spec, model)}") from error


def _where(spec: TensorSignature, model: ModelSignature) -> str:
    return f"for input '{spec.name}' for model '{model.name}'"


def _shape_fits(shape: tuple[int, ...], spec: TensorSignature) -> bool:
    return spec.fits(shape) and not (spec.batched and shape[0] == 0)


def _refusal(request: InferRequest, message: str) -> InvalidRequest:
    return InvalidRequest(f"[request id: {request.id or '<id_unknown>'}] {message}")


def _brackets(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"
