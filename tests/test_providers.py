from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnx_models import IDENT_CONFIG, VISION_CONFIG, publish_ident, publish_vision
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve import providers
from stn_serve.errors import ConfigurationError
from stn_serve.model import Model
from stn_serve.providers import execution_providers
from stn_serve.repository import read_config
from stn_serve.session import configure_run, nodes_on_cpu, open_session, report_fallen

ON_GPU = "instance_group [{ kind: KIND_GPU }]"


def config(text: str) -> ModelConfig:
    return text_format.Parse(f'name: "m" {text}', ModelConfig())


def accelerator(name: str, **parameters: str) -> str:
    pairs = "".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return f'optimization {{ execution_accelerators {{ gpu_execution_accelerator [{{ name: "{name}" {pairs} }}] }} }}'


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU; what is asked of ONNX Runtime there, not what it does."""
    monkeypatch.setattr(providers, "_gpu_count", lambda: 1)


@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_AUTO"])
def test_without_a_gpu_there_is_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "_gpu_count", lambda: 0)
    assert execution_providers(config(f"instance_group [{{ kind: {kind} }}]")) == [("CPUExecutionProvider", {})]


@pytest.mark.usefixtures("one_gpu")
def test_cuda_has_the_options_of_both_places() -> None:
    text = parameter("cudnn_conv_algo_search", "0") + parameter("gpu_mem_limit", "1000")
    given = config(ON_GPU + text + accelerator("cuda", gpu_mem_limit="2000", use_ep_level_unified_stream="1"))
    assert execution_providers(given) == [
        (
            "CUDAExecutionProvider",
            {
                "cudnn_conv_algo_search": "EXHAUSTIVE",
                "gpu_mem_limit": "2000",
                "use_ep_level_unified_stream": "1",
                "device_id": "0",
            },
        ),
        ("CPUExecutionProvider", {}),
    ]
    assert execution_providers(config(ON_GPU))[0][1]["cudnn_conv_algo_search"] == "HEURISTIC"


@pytest.mark.usefixtures("one_gpu")
def test_tensorrt_has_the_options_that_tritons_backend_documents() -> None:
    text = accelerator(
        "tensorrt",
        precision_mode="FP16",
        max_workspace_size_bytes="1073741824",
        trt_engine_cache_enable="1",
        trt_engine_cache_path="/cache",
        trt_profile_min_shapes="image:1x8x8x1",
        trt_timing_cache_enable="false",
    )
    first, second, third = execution_providers(config(ON_GPU + text))
    assert first == (
        "TensorrtExecutionProvider",
        {
            "trt_fp16_enable": "True",
            "trt_max_workspace_size": "1073741824",
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": "/cache",
            "trt_profile_min_shapes": "image:1x8x8x1",
            "trt_timing_cache_enable": "False",
            "device_id": "0",
        },
    )
    assert (second[0], third[0]) == ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (accelerator("openvino"), "gpu_execution_accelerator 'openvino' is not supported, expected tensorrt or cuda"),
        (accelerator("tensorrt", precision_mode="FP8"), "precision_mode is 'FP8', expected FP32, FP16, BF16, INT8"),
        (accelerator("tensorrt", workspace="1"), "'tensorrt' has no parameter 'workspace', expected precision_mode"),
        (parameter("cudnn_conv_algo_search", "HEURISTIC"), r"'HEURISTIC', expected 0 \(EXHAUSTIVE\), 1 \(HEURISTIC\)"),
        ("instance_group [{ kind: KIND_GPU gpus: [3] }]", "asks for GPU 3, but this machine has 1 GPUs"),
        ("instance_group [{ kind: KIND_GPU gpus: [0, 1] }]", r"one GPU per model is supported, gpus names \[0, 1\]"),
        ("instance_group [{ kind: KIND_GPU }, { kind: KIND_CPU }]", "has KIND_CPU, KIND_GPU, expected one of"),
        (
            "instance_group [{ kind: KIND_CPU }]" + accelerator("cuda"),
            "needs instance_group with KIND_GPU, not KIND_CPU",
        ),
    ],
)
@pytest.mark.usefixtures("one_gpu")
def test_what_no_provider_understands_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        execution_providers(config(text if "instance_group" in text else ON_GPU + text))


def test_a_provider_whose_libraries_are_missing_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = publish_ident(tmp_path) / "1" / "model.onnx"
    wanted = [("CUDAExecutionProvider", {"device_id": "0"}), ("CPUExecutionProvider", {})]
    if ort.get_device() == "GPU" and providers._gpu_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigurationError, match=r"model 'm'.*CUDA"):
        open_session(path, config(ON_GPU), wanted)
    assert "EP Error" not in capfd.readouterr().out


def test_nodes_on_the_cpu_are_named_and_refused_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = publish_vision(tmp_path) / "1" / "model.onnx"
    session = open_session(path, config(""), [("CPUExecutionProvider", {})])
    nodes = nodes_on_cpu(session)
    assert len(nodes) == 10
    assert any(node.startswith("ReduceMean (") for node in nodes)
    with caplog.at_level(logging.WARNING):
        report_fallen(config(ON_GPU), nodes)
    assert caplog.messages[0].startswith("model 'm' runs on the CPU in part: Cast (")
    assert caplog.messages[0].endswith(" and 2 more")
    strict = config(ON_GPU + parameter("session.disable_cpu_ep_fallback", "1"))
    with pytest.raises(ConfigurationError, match=r"in part: Cast .*which session.disable_cpu_ep_fallback refuses"):
        report_fallen(strict, nodes)
    report_fallen(strict, [])


def test_the_parameters_of_tritons_backend_reach_the_session(tmp_path: Path) -> None:
    text = "".join(
        parameter(name, value)
        for name, value in {
            "intra_op_thread_count": "3",
            "inter_op_thread_count": "2",
            "execution_mode": "1",
            "enable_mem_arena": "0",
            "enable_mem_pattern": "false",
            "session.use_device_allocator_for_initializers": "1",
            "memory.enable_memory_arena_shrinkage": "cpu:0",
        }.items()
    )
    directory = publish_vision(tmp_path)
    (directory / "config.pbtxt").write_text(VISION_CONFIG + text)
    model = Model.load(directory, 1, read_config(directory))
    options = model.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    run = ort.RunOptions()
    configure_run(run, model.config)
    assert run.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "cpu:0"


def test_a_switch_that_is_none_is_refused(tmp_path: Path) -> None:
    directory = publish_ident(tmp_path, config=IDENT_CONFIG + parameter("enable_mem_arena", "perhaps"))
    with pytest.raises(ConfigurationError, match="parameter enable_mem_arena is 'perhaps', expected 0 or 1"):
        Model.load(directory, 1, read_config(directory))
