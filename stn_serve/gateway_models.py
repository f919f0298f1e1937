"""What callers see of a model, out of the configuration that Triton shows of it."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

from stn_serve.errors import ConfigurationError
from stn_serve.metadata import METADATA_KEY
from stn_serve.signature import ModelSignature, TensorSignature, metadata_of_config
from stn_serve.tensors import DATATYPES, datatype_of_config


def signature_of(config: ModelConfig, version: int) -> ModelSignature:
    """One version of a model as Triton serves it.

    Raises:
        ConfigurationError: its requests cannot be passed on, or its metadata does not fit it; says why.
    """
    for what in _not_passed_on(config):
        raise ConfigurationError(f"model '{config.name}': {what} is not passed on to Triton")
    metadata = metadata_of_config(config)
    signature = ModelSignature(
        config.name,
        version,
        config,
        inputs=tuple(_tensor(config, "input", tensor) for tensor in config.input),
        # Triton does not show its files of labels; `stn export` has written the same ones into the metadata.
        outputs=tuple(
            _tensor(config, "output", tensor, metadata.labels if metadata and tensor.label_filename else ())
            for tensor in config.output
        ),
        metadata=metadata,
    )
    signature.check_metadata()
    return signature


def agree(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether callers see the same in both; how a Triton computes it is its own affair."""
    return _face(one) == _face(other)


def _face(config: ModelConfig) -> tuple[object, ...]:
    tensors = [
        [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in tensors]
        for tensors in (config.input, config.output)
    ]
    metadata = config.parameters[METADATA_KEY].string_value if METADATA_KEY in config.parameters else ""
    return config.max_batch_size, tensors, metadata


def _not_passed_on(config: ModelConfig) -> Iterator[str]:
    if config.HasField("sequence_batching"):
        yield "sequence_batching"
    if config.model_transaction_policy.decoupled:
        yield "a decoupled model_transaction_policy"
    for tensor in config.input:
        if tensor.optional:
            yield f"an optional input, '{tensor.name}',"
        if tensor.allow_ragged_batch:
            yield f"allow_ragged_batch of input '{tensor.name}'"


def _tensor(
    config: ModelConfig, role: str, tensor: ModelInput | ModelOutput, labels: tuple[str, ...] = ()
) -> TensorSignature:
    datatype = datatype_of_config(tensor.data_type)
    if datatype not in DATATYPES:
        raise ConfigurationError(f"model '{config.name}': {role} '{tensor.name}' is {datatype}, which is not supported")
    return TensorSignature(tensor.name, datatype, tuple(tensor.dims), config.max_batch_size > 0, labels)
