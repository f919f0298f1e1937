"""ONNX Runtime sessions as a model's configuration asks for them: provider, threads, optimisation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.errors import ConfigurationError
from stn_serve.limits import available_cpus
from stn_serve.providers import CPU, Provider, execution_providers

logger = logging.getLogger(__name__)

SILENT = 4
"""ONNX Runtime's severity "fatal"."""
QUIET = 3
"""ONNX Runtime's severity "error": its warnings tell of graph details that no operator of a server can change."""


NO_WEIGHTS = (".json", ".png", ".txt", ".md")
"""What lies beside a model to be read by people."""

LARGEST_LIST = 8
"""Nodes on the CPU that a message names."""


def create_session(path: Path, config: ModelConfig) -> ort.InferenceSession:
    """Load an ONNX file for the instance group, threads and optimisation of a `ModelConfig`.

    Nodes of a GPU model that fall to the CPU are named in a warning.

    Raises:
        ConfigurationError: the file is not a model that can run here, the GPU it must have is missing, or nodes fall to
            the CPU where the parameter `session.disable_cpu_ep_fallback` refuses that.
    """
    providers = execution_providers(config)
    session = open_session(path, config, providers)
    if providers[0][0] != CPU:
        report_fallen(config, nodes_on_cpu(session))
    return session


def open_session(model: Path | bytes, config: ModelConfig, providers: Sequence[Provider]) -> ort.InferenceSession:
    """Load an ONNX file, or its content, with exactly these providers.

    Raises:
        ConfigurationError: it is not a model that can run here, or a provider is missing.
    """
    name = model.name if isinstance(model, Path) else "its sampler alone"
    options = _options(config)
    try:
        weights = _weights_beside(model) if isinstance(model, Path) else {}
        options.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(content) for content in weights.values()]
        )
        # Without the fallback of ONNX Runtime's Python, which prints a banner and goes on with the CPU alone.
        session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        message = str(error).replace(str(model), name)  # callers see it in the index; the path is not theirs
        raise ConfigurationError(f"model '{config.name}': {name} cannot be loaded: {message}") from error
    for provider, _ in providers:
        if provider not in session.get_providers():
            raise ConfigurationError(
                f"model '{config.name}' asks for a GPU, but ONNX Runtime cannot load its {provider}: "
                "the libraries it needs are missing, or of another version"
            )
    return session


def nodes_on_cpu(session: ort.InferenceSession) -> list[str]:
    """The nodes that run on the CPU, as `operator (name)`, of a session that recorded where its nodes went."""
    return [
        f"{node.op_type} ({node.name})"
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name == CPU
        for node in subgraph.get_nodes()
    ]


def report_fallen(config: ModelConfig, nodes: Sequence[str]) -> None:
    """Name the nodes of a GPU model that fall to the CPU.

    Raises:
        ConfigurationError: there are some, and the model's parameter `session.disable_cpu_ep_fallback` refuses them.
    """
    if not nodes:
        return
    more = f" and {len(nodes) - LARGEST_LIST} more" if len(nodes) > LARGEST_LIST else ""
    problem = f"runs on the CPU in part: {', '.join(nodes[:LARGEST_LIST])}{more}"
    if _switch(config, "session.disable_cpu_ep_fallback"):
        raise ConfigurationError(f"model '{config.name}' {problem}, which session.disable_cpu_ep_fallback refuses")
    logger.warning("model '%s' %s", config.name, problem)


def configure_run(options: ort.RunOptions, config: ModelConfig) -> None:
    """Tell one run what the configuration says of each, and to leave the console alone: its caller hears of errors."""
    options.log_severity_level = SILENT
    name = "memory.enable_memory_arena_shrinkage"
    if name in config.parameters:
        options.add_run_config_entry(name, config.parameters[name].string_value)


def instance_count(config: ModelConfig) -> int:
    """How many batches of the model may run at the same time."""
    return sum(max(group.count, 1) for group in config.instance_group) or 1


def intra_op_threads(config: ModelConfig) -> int:
    """How many threads one batch computes with: the configuration's, else the model's instances share the CPUs."""
    return _integer(config, "intra_op_thread_count") or max(available_cpus() // instance_count(config), 1)


def _weights_beside(path: Path) -> dict[str, bytes]:
    """The files beside an ONNX file that may hold its weights, by the names that it has for them.

    ONNX Runtime would map them, and use the map for as long as the model is served: a file that somebody writes over
    would change the answers, and one that is truncated would end the process (SIGBUS). Of these it makes copies.
    """
    others = (file for file in path.parent.rglob("*") if file.is_file() and file != path)
    return {
        file.relative_to(path.parent).as_posix(): file.read_bytes()
        for file in others
        if file.suffix not in NO_WEIGHTS and not file.name.startswith(".")
    }


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
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.enable_cpu_mem_arena = _switch(config, "enable_mem_arena", default=True)
    options.enable_mem_pattern = _switch(config, "enable_mem_pattern", default=True)
    if _switch(config, "session.use_device_allocator_for_initializers"):
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def _integer(config: ModelConfig, parameter: str) -> int:
    """A number among the configuration's `parameters`; 0 where it is absent."""
    if parameter not in config.parameters:
        return 0
    value = config.parameters[parameter].string_value
    if not value.isdecimal():
        raise ConfigurationError(f"model '{config.name}': parameter {parameter} is '{value}', expected a number >= 0")
    return int(value)


def _switch(config: ModelConfig, parameter: str, default: bool = False) -> bool:
    """A boolean among the configuration's `parameters`, spelled as the backend takes it."""
    if parameter not in config.parameters:
        return default
    value = config.parameters[parameter].string_value.lower()
    if value not in ("0", "1", "false", "true"):
        raise ConfigurationError(f"model '{config.name}': parameter {parameter} is '{value}', expected 0 or 1")
    return value in ("1", "true")
