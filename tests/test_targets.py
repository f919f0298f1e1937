from __future__ import annotations

import pytest
from google.protobuf import text_format
from small_networks import exported
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from export.parity import Precision
from export.repository import model_config
from export.targets import Target, TargetError, engine_of, on_this_machine

IMAGES, VOLUMES = "affine", "affine_3d"


@pytest.mark.parametrize(
    ("engine", "triton", "network", "precision"),
    [
        ("cpu", None, IMAGES, "fp32"),
        ("cpu", None, IMAGES, "int8"),
        ("cpu", "24.04", VOLUMES, "fp32"),
        ("cuda", None, VOLUMES, "fp16"),
        ("cuda", "24.05", IMAGES, "fp32"),
        ("cuda", "26.07", VOLUMES, "fp32"),
        ("cuda", "24.04", "none", "fp32"),
        ("tensorrt", "26.07", IMAGES, "fp32"),
    ],
)
def test_what_targets_can_do(engine: str, triton: str | None, network: str, precision: Precision) -> None:
    Target.parse(engine, triton).check(exported(network).contract, precision)


@pytest.mark.parametrize(
    ("engine", "triton", "network", "precision", "reason"),
    [
        ("cuda", "24.04", IMAGES, "fp32", r"ONNX Runtime 1\.17\.3 has no CUDA kernel .* 2 dimensions.*Triton 24\.05"),
        ("cuda", "26.06", VOLUMES, "fp32", r"ONNX Runtime 1\.24\.4 has no CUDA kernel .* 3 dim.*Triton 26\.07 has one"),
        ("cuda", None, IMAGES, "int8", "no integer convolutions for CUDA"),
        ("tensorrt", None, VOLUMES, "fp32", "TensorRT samples images only"),
        ("tensorrt", "26.07", IMAGES, "fp16", "tensorrt of Triton 26.07: .* the grid included"),
        ("tensorrt", None, IMAGES, "int8", "without zero points only"),
        ("tensorrt", None, VOLUMES, "int8", "images only.*; .*zero points"),
    ],
)
def test_what_they_cannot_is_refused_with_the_reason(
    engine: str, triton: str | None, network: str, precision: Precision, reason: str
) -> None:
    with pytest.raises(TargetError, match=reason):
        Target.parse(engine, triton).check(exported(network).contract, precision)


@pytest.mark.parametrize(
    ("engine", "triton", "message"),
    [
        ("tpu", None, "target: expected one of cpu, cuda, tensorrt, got 'tpu'"),
        ("cuda", "23.12", "triton: expected a release since 24.04, got '23.12'"),
        ("cuda", "26.7", "got '26.7'"),
        ("cuda", "latest", "got 'latest'"),
    ],
)
def test_unknown_targets(engine: str, triton: str | None, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Target.parse(engine, triton)


@pytest.mark.parametrize("engine", ["cpu", "cuda", "tensorrt"])
def test_the_configuration_asks_for_the_engine(engine: str) -> None:
    written = text_format.MessageToString(model_config("m", exported(IMAGES).contract, 32, Target.parse(engine)))
    config = text_format.Parse(written, ModelConfig())
    assert engine_of(config) == engine
    kind = ModelInstanceGroup.KIND_CPU if engine == "cpu" else ModelInstanceGroup.KIND_GPU
    assert [group.kind for group in config.instance_group] == [kind]
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [accelerator.name for accelerator in accelerators] == ([] if engine == "cpu" else [engine])


def test_tensorrt_gets_one_profile_for_all_batches_and_no_half_precision() -> None:
    config = model_config("m", exported(IMAGES).contract, 32, Target("tensorrt"))
    parameters = dict(config.optimization.execution_accelerators.gpu_execution_accelerator[0].parameters)
    assert parameters["precision_mode"] == "FP32"
    assert parameters["trt_profile_min_shapes"] == "image:1x14x12x1"
    assert parameters["trt_profile_opt_shapes"] == "image:8x14x12x1"
    assert parameters["trt_profile_max_shapes"] == "image:32x14x12x1"


def test_proofs_run_on_what_is_here() -> None:
    config = model_config("m", exported(IMAGES).contract, 32, Target("tensorrt"))
    here = on_this_machine(config)
    assert here.instance_group[0].kind == ModelInstanceGroup.KIND_AUTO
    assert not here.optimization.HasField("execution_accelerators")
    assert engine_of(config) == "tensorrt"
    plain = model_config("m", exported(IMAGES).contract, 32)
    assert on_this_machine(plain) == plain
