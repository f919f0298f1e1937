"""Engines that a model may be exported for, and what each would compute wrongly or on the CPU without saying so.

Which release of Triton carries which ONNX Runtime, and what that has kernels for, is from their release notes, sources
and issues; the reasons name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.graph_contract import GraphContract
from export.parity import Precision

Engine = Literal["cpu", "cuda", "tensorrt"]
Release = tuple[int, ...]

ONNX_RUNTIMES: dict[Release, Release] = {
    (24, 4): (1, 17, 3),
    (24, 5): (1, 18, 0),
    (25, 5): (1, 22, 0),
    (25, 11): (1, 23, 2),
    (26, 2): (1, 24, 1),
    (26, 3): (1, 24, 2),
    (26, 4): (1, 24, 4),
    (26, 7): (1, 27, 0),
}
"""Triton's releases that are known to carry a newer ONNX Runtime than those before; between two, at least the older."""

CUDA_SAMPLERS: dict[int, Release] = {2: (1, 18, 0), 3: (1, 25, 1)}
"""By the dimensions of what is sampled: the first ONNX Runtime with a GridSample kernel for CUDA."""


class TargetError(ValueError):
    """A model that the target would compute wrongly or elsewhere than asked; says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """What will run the model."""

    engine: Engine = "cpu"
    """`cpu` and `cuda` are ONNX Runtime's, in `stn serve` and Triton; `tensorrt` is ONNX Runtime's with TensorRT in
    Triton."""
    triton: Release | None = None
    """Release of the oldest Triton that must serve it, such as (26, 7); None for `stn serve` or a current one."""

    @classmethod
    def parse(cls, engine: str, triton: str | None = None) -> Target:
        """From the command line's words.

        Raises:
            TargetError: an unknown engine or release.
        """
        if engine not in get_args(Engine):
            raise TargetError(f"target: expected one of {', '.join(get_args(Engine))}, got '{engine}'")
        if triton is None:
            return cls(engine)  # type: ignore[arg-type]  # looked up above
        found = re.fullmatch(r"(\d\d)\.(\d\d)", triton)
        release = tuple(map(int, found.groups())) if found else ()
        if release < min(ONNX_RUNTIMES):
            raise TargetError(f"triton: expected a release since {_text(min(ONNX_RUNTIMES))}, got '{triton}'")
        return cls(engine, release)  # type: ignore[arg-type]

    def check(self, contract: GraphContract, precision: Precision) -> None:
        """Hold a model against what the target can do.

        Raises:
            TargetError: with every reason against it.
        """
        reasons = [*self._against_samplers(contract), *self._against_precision(precision)]
        if reasons:
            raise TargetError(f"target {self}: {'; '.join(reasons)}")

    def _against_samplers(self, contract: GraphContract) -> Iterator[str]:
        dimensions, runtime = contract.dimensions, self._onnx_runtime()
        if not contract.samplers:
            return
        if self.engine == "tensorrt" and dimensions == 3:
            yield "TensorRT samples images only, no volumes ('Input must be 4D'): take cuda"
        if self.engine == "cuda" and runtime and runtime < CUDA_SAMPLERS[dimensions]:
            needed = CUDA_SAMPLERS[dimensions]
            since = next(release for release, carried in ONNX_RUNTIMES.items() if carried >= needed)
            yield (
                f"its ONNX Runtime {_text(runtime)} has no CUDA kernel for GridSample of {dimensions} dimensions: it "
                f"would run on the CPU, with copies there and back; Triton {since[0]}.{since[1]:02} has one"
            )

    def _against_precision(self, precision: Precision) -> Iterator[str]:
        if self.engine == "cuda" and precision == "int8":
            yield (
                "ONNX Runtime has no integer convolutions for CUDA: it would compute floats between quantising and "
                "dequantising, slower than fp32: take fp16"
            )
        if self.engine == "tensorrt" and precision == "int8":
            yield "TensorRT takes int8 without zero points only, the activations here have them: take fp32, or cuda"
        if self.engine == "tensorrt" and precision == "fp16":
            yield (
                "TensorRT, once allowed float16, may take it for any layer, the grid included, and the grid must stay "
                "in float32: take fp32, or cuda"
            )

    def _onnx_runtime(self) -> Release | None:
        """The oldest it may be; None for a current one."""
        if self.triton is None:
            return None
        return max(carried for release, carried in ONNX_RUNTIMES.items() if release <= self.triton)

    def configuration(self, contract: GraphContract, max_batch_size: int) -> dict[str, Any]:
        """What `config.pbtxt` says of where to run, and with which options."""
        if self.engine == "cpu":
            return {"instance_group": [{"kind": "KIND_CPU", "count": 1}]}
        accelerator = _tensorrt(contract, max_batch_size) if self.engine == "tensorrt" else _cuda()
        return {
            "instance_group": [{"kind": "KIND_GPU", "count": 1}],
            "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}},
        }

    def __str__(self) -> str:
        return self.engine + (f" of Triton {self.triton[0]}.{self.triton[1]:02}" if self.triton else "")


def engine_of(config: ModelConfig) -> Engine:
    """The engine that a configuration asks for."""
    if any(group.kind == ModelInstanceGroup.KIND_CPU for group in config.instance_group):
        return "cpu"
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if any(accelerator.name == "tensorrt" for accelerator in accelerators):
        return "tensorrt"
    return "cuda" if any(group.kind == ModelInstanceGroup.KIND_GPU for group in config.instance_group) else "cpu"


def on_this_machine(config: ModelConfig) -> ModelConfig:
    """The same model on whatever is here: a GPU where there is one, else the CPU."""
    here = ModelConfig()
    here.CopyFrom(config)
    if here.optimization.HasField("execution_accelerators"):
        here.ClearField("optimization")
    for group in here.instance_group:
        if group.kind == ModelInstanceGroup.KIND_GPU:
            group.kind = ModelInstanceGroup.KIND_AUTO
            del group.gpus[:]
    return here


def _cuda() -> dict[str, Any]:
    # The default search tries every algorithm for every new batch size: seconds, at the first request of each.
    return {"name": "cuda", "parameters": {"cudnn_conv_algo_search": "HEURISTIC"}}


def _tensorrt(contract: GraphContract, max_batch_size: int) -> dict[str, Any]:
    """One engine for all batch sizes, in float32, kept between starts."""
    image = contract.metadata.input
    dims = f"{image.height}x{image.width}x{image.channels}"
    shapes = {"min": 1, "opt": max(max_batch_size // 4, 1), "max": max(max_batch_size, 1)}
    profile = {f"trt_profile_{name}_shapes": f"image:{batch}x{dims}" for name, batch in shapes.items()}
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/tmp/tensorrt"}  # noqa: S108 - a cache
    return {"name": "tensorrt", "parameters": {"precision_mode": "FP32", **cache, **profile}}


def _text(release: Release) -> str:
    major, *rest = release
    return ".".join([str(major), *(map(str, rest) if len(rest) > 1 else (f"{part:02}" for part in rest))])
