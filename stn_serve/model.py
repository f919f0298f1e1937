"""One version of a model: an ONNX file that keeps what its `config.pbtxt` and its metadata promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnxruntime as ort
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from stn_serve.canary import check_sampling
from stn_serve.errors import ConfigurationError, ModelFailure
from stn_serve.metadata import METADATA_KEY, ModelMetadata
from stn_serve.session import configure_run, create_session
from stn_serve.signature import ModelSignature, TensorSignature, metadata_of_config, read_metadata
from stn_serve.tensors import DATATYPES, datatype_of_config, datatype_of_onnx

Array = NDArray[Any]
_Signatures = tuple[TensorSignature, ...]


@dataclass(frozen=True, slots=True)
class Model(ModelSignature):
    """A loaded model; `run` may be called from several threads at once."""

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
        metadata = _metadata(session, config)
        model = cls(config.name, version, config, inputs, outputs, metadata, session)
        model.check_metadata()
        if metadata and metadata.transformers:
            check_sampling(path, config, axes=3 if metadata.transform == "affine_3d" else 2)
        return model

    @property
    def runs_on_cpu(self) -> bool:
        """Rather than on a GPU."""
        return bool(self.session.get_providers()[0] == "CPUExecutionProvider")

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None, options: ort.RunOptions | None = None
    ) -> dict[str, Array]:
        """Compute the named outputs, or all of them, from arrays of the signature's shapes and datatypes. Blocks.

        Raises:
            ModelFailure: ONNX Runtime refused, failed, or was told by the options to stop, or an output has another
                shape than `config.pbtxt` says.
        """
        options = options or ort.RunOptions()
        configure_run(options, self.config)
        names = list(outputs) if outputs is not None else [spec.name for spec in self.outputs]
        try:
            fed = {spec.name: _reshaped(inputs[spec.name], spec.dims, spec.reshape) for spec in self.inputs}
            results = dict(zip(names, self.session.run(names, fed, options), strict=True))
            changed = [spec for spec in self.outputs if spec.reshape is not None and spec.name in results]
            results |= {spec.name: _reshaped(results[spec.name], spec.reshape, spec.dims) for spec in changed}
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise ModelFailure(f"model '{self.name}' version {self.version} failed: {error}") from error
        for spec in self.outputs:
            if spec.name in results and not spec.fits(results[spec.name].shape):
                raise ModelFailure(
                    f"model '{self.name}' version {self.version}: output '{spec.name}' has shape "
                    f"{list(results[spec.name].shape)}, expected {list(spec.shape)}"
                )
        return results


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
    node = found[declared.name]
    datatype = datatype_of_config(declared.data_type)
    if datatype not in DATATYPES or datatype != datatype_of_onnx(node.type):
        raise ConfigurationError(f"{where} is {datatype} in config.pbtxt, but {node.type} in the ONNX file")
    batched = config.max_batch_size > 0
    dims = tuple(declared.dims)
    reshape = tuple(declared.reshape.shape) if declared.HasField("reshape") else None
    _check_dims(where, dims if reshape is None else reshape, node.shape, batched)
    labels = _read_labels(directory / declared.label_filename) if role == "output" and declared.label_filename else ()
    return TensorSignature(declared.name, datatype, dims, batched, labels, reshape)


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


def _reshaped(array: Array, dims: Sequence[int] | None, shape: Sequence[int] | None) -> Array:
    """From some dims to others behind the batch axis, if there is one; sizes of -1 are the same in the same order."""
    if dims is None or shape is None:
        return array
    batch = array.shape[: array.ndim - len(dims)]
    variable = iter(size for size, dim in zip(array.shape[len(batch) :], dims, strict=True) if dim < 0)
    return array.reshape(*batch, *(next(variable) if dim < 0 else dim for dim in shape))


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"labels cannot be read from {path.name}: {error.__class__.__name__}") from error


def _metadata(session: ort.InferenceSession, config: ModelConfig) -> ModelMetadata | None:
    """The file's own, else the configuration's."""
    document = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return read_metadata(document, config.name) if document is not None else metadata_of_config(config)


def _quoted(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)
