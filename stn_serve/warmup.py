"""The runs of `model_warmup`: they let ONNX Runtime allocate and choose its kernels before the first caller waits."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.model_config_pb2 import ModelWarmup

from stn_serve.errors import ConfigurationError, ServingError
from stn_serve.model import Model
from stn_serve.tensors import DATATYPES, datatype_of_config, from_raw


def warm_up(model: Model, directory: Path) -> None:
    """Run every `model_warmup` of the model's configuration, `count` times (once where it says 0).

    Raises:
        ConfigurationError: an input does not fit the model, or its file cannot be read.
    """
    for sample in model.config.model_warmup:
        where = f"model '{model.name}': model_warmup '{sample.name}'"
        _check_names(where, sample, model)
        rows = (max(sample.batch_size, 1),) if model.max_batch_size else ()
        inputs = {name: sample_array(where, tensor, rows, directory) for name, tensor in sample.inputs.items()}
        try:
            for _ in range(max(sample.count, 1)):
                model.run(inputs)
        except ServingError as error:
            raise ConfigurationError(f"{where}: {error}") from error


def _check_names(where: str, sample: ModelWarmup, model: Model) -> None:
    expected = sorted(spec.name for spec in model.inputs)
    if sorted(sample.inputs) != expected:
        raise ConfigurationError(f"{where} has inputs {sorted(sample.inputs)}, expected {expected}")


def sample_array(where: str, tensor: ModelWarmup.Input, rows: tuple[int, ...], directory: Path) -> NDArray[Any]:
    """One row of the kind asked for, repeated over the batch."""
    datatype = datatype_of_config(tensor.data_type)
    if datatype not in DATATYPES:
        raise ConfigurationError(f"{where}: datatype {datatype} is not supported")
    row = _row(where, tensor, datatype, directory)
    return np.ascontiguousarray(np.broadcast_to(row, (*rows, *row.shape)))


def _row(where: str, tensor: ModelWarmup.Input, datatype: str, directory: Path) -> NDArray[Any]:
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape):
        raise ConfigurationError(f"{where} has dims {list(shape)}, expected sizes >= 0")
    match tensor.WhichOneof("input_data_type"):
        case "input_data_file":
            return _from_file(where, directory / "warmup" / tensor.input_data_file, datatype, shape)
        case "random_data" if datatype != "BYTES":
            noise = np.random.default_rng(0).bytes(prod(shape))
            return np.frombuffer(noise, np.uint8).reshape(shape).astype(DATATYPES[datatype])
        case _:
            return np.full(shape, "" if datatype == "BYTES" else 0, DATATYPES[datatype])


def _from_file(where: str, path: Path, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        data = path.read_bytes()
        # As with Triton, a file may hold more than the one row that is taken from it.
        row = data if datatype == "BYTES" else data[: prod(shape) * DATATYPES[datatype].itemsize]
        return from_raw(row, datatype, shape)
    except OSError as error:
        raise ConfigurationError(f"{where}: {path.name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{where}: {path.name}: {error}") from error
