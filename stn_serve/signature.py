"""What callers see of a version of a model, whichever engine computes it: tensors, configuration, what outputs mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.metadata import METADATA_KEY, ModelMetadata


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """Name, datatype (the protocol's, such as `UINT8`) and dims of an input or output; -1 is any size."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    """As in `config.pbtxt`: without the batch axis of a model that batches."""
    batched: bool
    labels: tuple[str, ...] = ()
    reshape: tuple[int, ...] | None = None
    """The dims that the graph has instead, where the configuration says so."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims with the batch axis, as the protocol shows them."""
        return (-1, *self.dims) if self.batched else self.dims

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape is such a tensor."""
        expected = self.shape
        return len(shape) == len(expected) and all(map(_is_size, shape, expected))


def _is_size(size: int, dim: int) -> bool:
    return size >= 0 and dim in (size, -1)


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """One version of a model."""

    name: str
    version: int
    config: ModelConfig
    inputs: tuple[TensorSignature, ...]
    outputs: tuple[TensorSignature, ...]
    metadata: ModelMetadata | None
    """None for a model that was not exported by this project."""

    @property
    def max_batch_size(self) -> int:
        """Rows of the largest batch; 0 for a model without a batch axis."""
        return int(self.config.max_batch_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes: the metadata's, else those of the first output with a `label_filename`."""
        if self.metadata:
            return self.metadata.labels
        return next((spec.labels for spec in self.outputs if spec.labels), ())

    def check_metadata(self) -> None:
        """What the metadata counts must be what the graph computes, and the configuration must not tell otherwise.

        Raises:
            ConfigurationError: they contradict each other.
        """
        if self.metadata is None:
            return
        image = self.metadata.input
        self._expect_dims("image", slice(None), (image.height, image.width, image.channels))
        self._expect_dims("logits", slice(-1, None), (len(self.metadata.labels),))
        if self.metadata.transformers:
            self._expect_dims("theta", slice(1), (len(self.metadata.transformers),))
        configured = metadata_of_config(self.config)
        if configured not in (None, self.metadata):
            raise ConfigurationError(
                f"model '{self.name}': parameter '{METADATA_KEY}' of config.pbtxt is not the metadata of the ONNX file "
                f"of version {self.version}: a gateway to Triton would tell callers something else than `stn serve`"
            )

    def _expect_dims(self, name: str, axes: slice, expected: tuple[int, ...]) -> None:
        where = f"model '{self.name}': its '{METADATA_KEY}' metadata"
        tensors = {spec.name: spec for spec in (*self.inputs, *self.outputs)}
        if name not in tensors:
            raise ConfigurationError(f"{where} needs a tensor '{name}', which config.pbtxt lacks")
        dims = tensors[name].dims
        if dims[axes] != expected:
            raise ConfigurationError(f"{where} counts {list(expected)}, but '{name}' has dims {list(dims)}")


def metadata_of_config(config: ModelConfig) -> ModelMetadata | None:
    """The metadata in the parameter `stn` of a configuration, for those who see the model through Triton only.

    Raises:
        ConfigurationError: it cannot be read.
    """
    if METADATA_KEY not in config.parameters:
        return None
    return read_metadata(config.parameters[METADATA_KEY].string_value, config.name)


def read_metadata(document: str, model: str) -> ModelMetadata:
    """A model's metadata.

    Raises:
        ConfigurationError: it does not fit its schema.
    """
    try:
        return ModelMetadata.from_json(document)
    except ValueError as error:
        raise ConfigurationError(f"model '{model}': {error}") from error
