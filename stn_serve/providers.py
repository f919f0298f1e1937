"""ONNX Runtime's execution providers for a model, as Triton's ONNX Runtime backend reads them from `config.pbtxt`.

`instance_group` says CPU or GPU. On a GPU the CUDA provider runs what `gpu_execution_accelerator` "tensorrt" does not
take, and the CPU what is left; both accelerators have the parameters that the backend's README lists.

CUDA and TensorRT have never run where this was written, which has no GPU: their options are held against what ONNX
Runtime's own parser accepts, and everything around them is tested on the CPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator

import onnxruntime as ort
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from stn_serve.errors import ConfigurationError

Provider = tuple[str, dict[str, str]]
"""Its name, and its options."""

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

KIND = ModelInstanceGroup

TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
"""The backend's names of what ONNX Runtime calls otherwise; all other options begin with `trt_` for both."""

TENSORRT_SWITCHES = frozenset(
    {
        "trt_int8_use_native_calibration_table",
        "trt_dla_enable",
        "trt_engine_cache_enable",
        "trt_dump_subgraphs",
        "trt_force_sequential_engine_build",
        "trt_context_memory_sharing_enable",
        "trt_layer_norm_fp32_fallback",
        "trt_timing_cache_enable",
        "trt_force_timing_cache",
        "trt_detailed_build_log",
        "trt_build_heuristics_enable",
        "trt_sparsity_enable",
        "trt_cuda_graph_enable",
        "trt_dump_ep_context_model",
    }
)
"""Booleans, which the backend takes as 1, true, 0 or false, and ONNX Runtime's Python only as True or False."""

BOOLEANS = {"1": "True", "true": "True", "0": "False", "false": "False"}

TENSORRT_PRECISIONS = {
    "FP32": (),
    "FP16": ("trt_fp16_enable",),
    "BF16": ("trt_bf16_enable",),
    "INT8": ("trt_int8_enable",),
}

CUDA_CHOICES = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
}
"""Options that the backend's `parameters` give by number."""

CUDA_PARAMETERS = (*CUDA_CHOICES, "gpu_mem_limit", "do_copy_in_default_stream")
"""Among a configuration's `parameters`; the backend calls this place of theirs deprecated."""

CUDA_DEFAULTS = {"cudnn_conv_algo_search": "HEURISTIC"}
"""Unlike the backend's EXHAUSTIVE, which would search again for every new size of a batch."""


def execution_providers(config: ModelConfig) -> list[Provider]:
    """The providers of a model, in order of preference; the CPU is always the last.

    Raises:
        ConfigurationError: they contradict each other, do not exist, or need a GPU that is missing.
    """
    kind = _kind(config)
    accelerators = dict(_accelerators(config))
    if kind == KIND.KIND_CPU and accelerators:
        raise ConfigurationError(
            f"model '{config.name}': gpu_execution_accelerator {' and '.join(accelerators)} needs instance_group "
            "with KIND_GPU, not KIND_CPU"
        )
    if kind == KIND.KIND_CPU or (kind == KIND.KIND_AUTO and not _gpu_count()):
        return [(CPU, {})]
    device = {"device_id": str(_gpu(config))}
    ort.preload_dlls()
    cuda = CUDA_DEFAULTS | _cuda_parameters(config) | accelerators.get("cuda", {})
    tensorrt = [(TENSORRT, accelerators["tensorrt"] | device)] if "tensorrt" in accelerators else []
    return [*tensorrt, (CUDA, cuda | device), (CPU, {})]


def _kind(config: ModelConfig) -> ModelInstanceGroup.Kind:
    kinds = {group.kind for group in config.instance_group} or {KIND.KIND_AUTO}
    if not kinds <= {KIND.KIND_CPU, KIND.KIND_GPU, KIND.KIND_AUTO} or len(kinds) > 1:
        names = ", ".join(sorted(KIND.Kind.Name(kind) for kind in kinds))
        raise ConfigurationError(
            f"model '{config.name}': instance_group has {names}, expected one of KIND_CPU, KIND_GPU, KIND_AUTO"
        )
    return kinds.pop()


def _accelerators(config: ModelConfig) -> Iterator[Provider]:
    for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
        where = f"model '{config.name}': gpu_execution_accelerator '{accelerator.name}'"
        if accelerator.name == "cuda":
            yield "cuda", dict(accelerator.parameters)
        elif accelerator.name == "tensorrt":
            yield "tensorrt", dict(_tensorrt_options(where, accelerator.parameters.items()))
        else:
            raise ConfigurationError(f"{where} is not supported, expected tensorrt or cuda")


def _tensorrt_options(where: str, parameters: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, value in parameters:
        if name == "precision_mode":
            if value not in TENSORRT_PRECISIONS:
                raise ConfigurationError(f"{where}: {name} is '{value}', expected {', '.join(TENSORRT_PRECISIONS)}")
            yield from ((option, "True") for option in TENSORRT_PRECISIONS[value])
        elif name in TENSORRT_OPTIONS or name.startswith("trt_"):
            option = TENSORRT_OPTIONS.get(name, name)
            yield option, BOOLEANS.get(value, value) if option in TENSORRT_SWITCHES else value
        else:
            known = ", ".join(["precision_mode", *TENSORRT_OPTIONS])
            raise ConfigurationError(f"{where} has no parameter '{name}', expected {known}, or one of trt_...")


def _cuda_parameters(config: ModelConfig) -> dict[str, str]:
    given = {name: config.parameters[name].string_value for name in CUDA_PARAMETERS if name in config.parameters}
    for name, choices in CUDA_CHOICES.items():
        if name in given:
            numbers = {str(number): choice for number, choice in enumerate(choices)}
            if given[name] not in numbers:
                expected = ", ".join(f"{number} ({choice})" for number, choice in numbers.items())
                raise ConfigurationError(
                    f"model '{config.name}': parameter {name} is '{given[name]}', expected {expected}"
                )
            given[name] = numbers[given[name]]
    return given


def _gpu(config: ModelConfig) -> int:
    gpus = {gpu for group in config.instance_group for gpu in group.gpus} or {0}
    if len(gpus) > 1:
        raise ConfigurationError(f"model '{config.name}': one GPU per model is supported, gpus names {sorted(gpus)}")
    gpu, count = gpus.pop(), _gpu_count()
    if gpu >= count:
        raise ConfigurationError(f"model '{config.name}' asks for GPU {gpu}, but this machine has {count} GPUs")
    return int(gpu)


def _gpu_count() -> int:
    """GPUs that the CUDA driver shows; asked of the driver because ONNX Runtime lists CUDA where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    found = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return int(count.value) if found else 0
