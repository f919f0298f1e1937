"""ONNX Runtime sessions as a model's configuration asks for them: provider, threads, optimisation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from stn_serve.errors import ConfigurationError
from stn_serve.limits import available_cpus

KIND = ModelInstanceGroup
QUIET = 3
"""ONNX Runtime's severity "error": its warnings tell of graph details that no operator of a server can change."""


def create_session(path: Path, config: ModelConfig) -> ort.InferenceSession:
    """Load an ONNX file for the instance group, threads and optimisation of a `ModelConfig`.

    Raises:
        ConfigurationError: the file is not a model that can run here, or the GPU it must have is missing.
    """
    providers = _providers(config)
    try:
        session = ort.InferenceSession(path, _options(config), providers=providers)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        message = str(error).replace(str(path), path.name)  # callers see it in the index; the path is not theirs
        raise ConfigurationError(f"model '{config.name}': {path.name} cannot be loaded: {message}") from error
    wanted = _provider_name(providers[0])
    if wanted not in session.get_providers():
        raise ConfigurationError(f"model '{config.name}' asks for a GPU, but ONNX Runtime cannot load its {wanted}")
    return session


def instance_count(config: ModelConfig) -> int:
    """How many batches of the model may run at the same time."""
    return sum(max(group.count, 1) for group in config.instance_group) or 1


def intra_op_threads(config: ModelConfig) -> int:
    """How many threads one batch computes with: the configuration's, else the model's instances share the CPUs."""
    return _integer(config, "intra_op_thread_count") or max(available_cpus() // instance_count(config), 1)


def _options(config: ModelConfig) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = intra_op_threads(config)
    options.inter_op_num_threads = _integer(config, "inter_op_thread_count") or 1
    if _integer(config, "execution_mode"):
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = {
        -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    }.get(config.optimization.graph.level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # Spinning threads would take the CPU from the event loop that feeds them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _integer(config: ModelConfig, parameter: str) -> int:
    """A number among the configuration's `parameters`; 0 where it is absent."""
    if parameter not in config.parameters:
        return 0
    value = config.parameters[parameter].string_value
    if not value.isdecimal():
        raise ConfigurationError(f"model '{config.name}': parameter {parameter} is '{value}', expected a number >= 0")
    return int(value)


def _providers(config: ModelConfig) -> list[str | tuple[str, dict[str, str]]]:
    kinds = {group.kind for group in config.instance_group} or {KIND.KIND_AUTO}
    if not kinds <= {KIND.KIND_CPU, KIND.KIND_GPU, KIND.KIND_AUTO} or len(kinds) > 1:
        names = ", ".join(sorted(KIND.Kind.Name(kind) for kind in kinds))
        raise ConfigurationError(
            f"model '{config.name}': instance_group has {names}, expected one of KIND_CPU, KIND_GPU, KIND_AUTO"
        )
    kind = kinds.pop()
    if kind == KIND.KIND_CPU or (kind == KIND.KIND_AUTO and not _gpu_count()):
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", _cuda_options(config)), "CPUExecutionProvider"]


def _cuda_options(config: ModelConfig) -> dict[str, str]:
    gpus = {gpu for group in config.instance_group for gpu in group.gpus} or {0}
    if len(gpus) > 1:
        raise ConfigurationError(f"model '{config.name}': one GPU per model is supported, gpus names {sorted(gpus)}")
    gpu, count = gpus.pop(), _gpu_count()
    if gpu >= count:
        raise ConfigurationError(f"model '{config.name}' asks for GPU {gpu}, but this machine has {count} GPUs")
    ort.preload_dlls()
    return {"device_id": str(gpu), "cudnn_conv_algo_search": "HEURISTIC"}


def _gpu_count() -> int:
    """GPUs that the CUDA driver shows; asked of the driver because ONNX Runtime lists CUDA where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if found else 0


def _provider_name(provider: str | Sequence[Any]) -> str:
    return provider if isinstance(provider, str) else str(provider[0])
