"""The real Triton with its Python backend, the only one that the wheel of PyTriton brings.

As NVIDIA advises: dynamic batching without a delay, a `model.py` that computes what an `execute` call brings as one
batch, and an `instance_group` of the CPU: of one instance, which computes with a thread for each CPU, or of two.
Threads that spin while they wait had the better throughput here at times, and a p99 at least half as long again.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from benchmarks.peers.open_inference import binary_calls
from benchmarks.peers.peer import RAW_GRPC, RAW_HTTP, TENSOR_GRPC, TENSOR_HTTP, Peer, Running, Unavailable
from benchmarks.peers.workload import Workload
from benchmarks.real_triton import NotAvailable, running_triton
from stn_serve.limits import available_cpus

MODEL = Path(__file__).parent / "apps" / "triton_model.py"


@contextmanager
def _serve(workload: Workload, folder: Path, instances: int) -> Iterator[Running]:
    repository = folder / "repository"
    version = repository / workload.name / "1"
    version.mkdir(parents=True)
    shutil.copy(workload.onnx, version)
    shutil.copy(MODEL, version / "model.py")
    (version.parent / "config.pbtxt").write_text(text_format.MessageToString(_config(workload, instances)))
    try:
        with running_triton(repository, [workload.name]) as triton:
            yield Running(
                triton.process.pid,
                {"grpc": triton.grpc, "http": triton.http},
                binary_calls(triton.grpc, triton.http, workload),
            )
    except NotAvailable as reason:
        raise Unavailable(str(reason)) from reason


def _config(workload: Workload, instances: int) -> ModelConfig:
    ours = workload.config
    config = ModelConfig(name=ours.name, backend="python", max_batch_size=ours.max_batch_size)
    config.input.extend(ours.input)
    for output in ours.output:
        config.output.add(name=output.name, data_type=output.data_type, dims=output.dims)
    config.instance_group.add(count=instances, kind=ModelInstanceGroup.KIND_CPU)
    config.dynamic_batching.SetInParent()
    config.parameters["packages"].string_value = sysconfig.get_path("purelib")
    config.parameters["intra_op_threads"].string_value = str(max(available_cpus() // instances, 1))
    return config


def peers() -> list[Peer]:
    """With one instance of the model, and with two."""
    ways = (TENSOR_GRPC, TENSOR_HTTP, RAW_GRPC, RAW_HTTP)
    note = "dynamic batching without a delay, a `model.py` that runs what an `execute` call brings as one batch"
    one, two = partial(_serve, instances=1), partial(_serve, instances=2)
    return [
        Peer("triton", "Triton 2.51, Python backend", ways, f"{note}; a thread for each CPU", one),
        Peer("triton-2", "Triton 2.51, 2 instances", ways, f"{note}; the CPUs shared out between the two", two),
    ]
