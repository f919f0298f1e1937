"""One version of a model: an ONNX file that keeps what its `config.pbtxt` and its metadata promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnxruntime as ort
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from stn_serve.errors import ConfigurationError, ModelFailure
from stn_serve.metadata import METADATA_KEY, ModelMetadata
from stn_serve.session import create_session
from stn_serve.tensors import DATATYPES, datatype_of_config, datatype_of_onnx

Array = NDArray[Any]
_Signatures = tuple["TensorSignature", ...]


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """Name, datatype (the protocol's, such as `UINT8`) and dims of an input or output; -1 is any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    """As in `config.pbtxt`: without the batch axis of a model that batches."""
    batched: bool
    labels: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims with the batch axis, as the protocol shows them."""
        return (-1, *self.dims) if self.batched else self.dims


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model; `run` may be called from several threads at once."""

    name: str
    version: int
    config: ModelConfig
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    metadata: ModelMetadata | None
    """None for a model that was not exported by this project."""
    session: ort.InferenceSession

    @classmethod
    def load(cls, directory: Path, version: int, config: ModelConfig) -> Self:
        """Load `directory/version/model.onnx` and hold it against its configuration (see `repository.read_config`).

        Raises:
            ConfigurationError: the file is missing or broken, or contradicts `config.pbtxt` or its own metadata.
        """
        path = directory / str(version) / (config.default_model_filename or "model.onnx")
        if not path.is_file():
            raise ConfigurationError(f"model '{config.name}' version {version} has no file {path.name}")
        session = create_session(path, config)
        inputs = _signatures("input", session.get_inputs(), config, directory)
        outputs = _signatures("output", session.get_outputs(), config, directory)
        surplus = {node.name for node in session.get_inputs()} - {spec.name for spec in inputs}
        if surplus:
            raise ConfigurationError(f"model '{config.name}': config.pbtxt lacks input {_quoted(sorted(surplus))}")
        metadata = _metadata(session, config.name)
        if metadata:
            _check_metadata(metadata, config.name, {spec.name: spec for spec in (*inputs, *outputs)})
        return cls(config.name, version, config, inputs, outputs, metadata, session)

    @property
    def max_batch_size(self) -> int:
        """Rows of the largest batch; 0 for a model without a batch axis."""
        return int(self.config.max_batch_size)

    @property
    def runs_on_cpu(self) -> bool:
        """Rather than on a GPU."""
        return bool(self.session.get_providers()[0] == "CPUExecutionProvider")

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes: the metadata's, else those of the first output with a `label_filename`."""
        if self.metadata:
            return self.metadata.labels
        return next((spec.labels for spec in self.outputs if spec.labels), ())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute the named outputs, or all of them, from arrays of the signature's shapes and datatypes. Blocks.

        Raises:
            ModelFailure: ONNX Runtime refused or failed.
        """
        names = list(outputs) if outputs is not None else [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise ModelFailure(f"model '{self.name}' version {self.version} failed: {error}") from error


def _signatures(role: str, nodes: Sequence[ort.NodeArg], config: ModelConfig, directory: Path) -> _Signatures:
    declared = getattr(config, role)
    if not declared:
        raise ConfigurationError(f"model '{config.name}': config.pbtxt declares no {role}")
    found = {node.name: node for node in nodes}
    return tuple(_signature(role, tensor, found, config, directory) for tensor in declared)


def _signature(
    role: str,
    declared: ModelInput | ModelOutput,
    found: Mapping[str, ort.NodeArg],
    config: ModelConfig,
    directory: Path,
) -> TensorSignature:
    where = f"model '{config.name}': {role} '{declared.name}'"
    if declared.name not in found:
        raise ConfigurationError(f"{where} of config.pbtxt is not in the ONNX file, which has {_quoted(found)}")
    if declared.HasField("reshape"):
        raise ConfigurationError(f"{where}: reshape is not supported")
    node = found[declared.name]
    datatype = datatype_of_config(declared.data_type)
    if datatype not in DATATYPES or datatype != datatype_of_onnx(node.type):
        raise ConfigurationError(f"{where} is {datatype} in config.pbtxt, but {node.type} in the ONNX file")
    batched = config.max_batch_size > 0
    dims = tuple(declared.dims)
    _check_dims(where, dims, node.shape, batched)
    labels = _read_labels(directory / declared.label_filename) if role == "output" and declared.label_filename else ()
    return TensorSignature(declared.name, datatype, dims, batched, labels)


def _check_dims(where: str, dims: tuple[int, ...], onnx_shape: Sequence[int | str | None], batched: bool) -> None:
    expected = (-1, *dims) if batched else dims
    same = len(expected) == len(onnx_shape) and all(
        not isinstance(actual, int) or actual == dim for dim, actual in zip(expected, onnx_shape, strict=True)
    )
    if not same:
        batch = " with the batch axis that max_batch_size > 0 puts first" if batched else ""
        raise ConfigurationError(
            f"{where} has shape {list(expected)} in config.pbtxt{batch}, but {list(onnx_shape)} in the ONNX file"
        )


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"labels cannot be read from {path.name}: {error.__class__.__name__}") from error


def _metadata(session: ort.InferenceSession, name: str) -> ModelMetadata | None:
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if document is None:
        return None
    try:
        return ModelMetadata.from_json(document)
    except ValueError as error:
        raise ConfigurationError(f"model '{name}': {error}") from error


def _check_metadata(metadata: ModelMetadata, name: str, tensors: Mapping[str, TensorSignature]) -> None:
    """What the metadata counts must be what the graph computes."""
    image = metadata.input
    _expect_dims(name, tensors, "image", slice(None), (image.height, image.width, image.channels))
    _expect_dims(name, tensors, "logits", slice(-1, None), (len(metadata.labels),))
    if metadata.transformers:
        _expect_dims(name, tensors, "theta", slice(1), (len(metadata.transformers),))


def _expect_dims(
    model: str, tensors: Mapping[str, TensorSignature], name: str, axes: slice, expected: tuple[int, ...]
) -> None:
    where = f"model '{model}': its '{METADATA_KEY}' metadata"
    if name not in tensors:
        raise ConfigurationError(f"{where} needs a tensor '{name}', which config.pbtxt lacks")
    dims = tensors[name].dims
    if dims[axes] != expected:
        raise ConfigurationError(f"{where} counts {list(expected)}, but '{name}' has dims {list(dims)}")


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)
