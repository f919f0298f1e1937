"""Every field of Triton's `ModelConfig`, and what becomes of it here: honoured, refused, or ignored.

Refused is what a server may not ignore without answering wrongly; ignored, with a warning that names it, is what
changes no answer. A field that a later version of the message brings is in no list: it is ignored, and a test fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.metadata import METADATA_KEY

_QUEUE_POLICY = "timeout_action default_timeout_microseconds allow_timeout_override max_queue_size"

HONOURED = frozenset(
    prefix + name
    for prefix, names in {
        "": "name platform backend max_batch_size default_model_filename parameters.string_value",
        "version_policy.": "latest.num_versions all specific.versions",
        "input.": "name data_type format dims reshape.shape",
        "output.": "name data_type dims reshape.shape label_filename",
        "instance_group.": "name kind count gpus",
        "optimization.": "graph.level",
        "optimization.execution_accelerators.gpu_execution_accelerator.": "name parameters",
        "dynamic_batching.": "preferred_batch_size max_queue_delay_microseconds preserve_ordering priority_levels "
        "default_priority_level",
        "dynamic_batching.default_queue_policy.": _QUEUE_POLICY,
        "dynamic_batching.priority_queue_policy.": _QUEUE_POLICY,
        "model_warmup.": "name batch_size count",
        "model_warmup.inputs.": "data_type dims zero_data random_data input_data_file",
    }.items()
    for name in names.split()
)
"""Fields, not messages: what a message gains is not honoured because the rest of it is."""

PARAMETERS = frozenset(
    {
        "intra_op_thread_count",
        "inter_op_thread_count",
        "execution_mode",
        "enable_mem_arena",
        "enable_mem_pattern",
        "memory.enable_memory_arena_shrinkage",
        "session.use_device_allocator_for_initializers",
        "session.disable_cpu_ep_fallback",
        "cudnn_conv_algo_search",
        "arena_extend_strategy",
        "gpu_mem_limit",
        "do_copy_in_default_stream",
        METADATA_KEY,
    }
)
"""The `parameters` that have an effect: those of Triton's ONNX Runtime backend, ONNX Runtime's own name for refusing a
GPU model that runs partly on the CPU (`session.disable_cpu_ep_fallback`), and the metadata."""

REFUSED = {
    "input.is_shape_tensor": "shape tensors are TensorRT's, not ONNX Runtime's",
    "input.is_non_linear_format_io": "such formats are TensorRT's, not ONNX Runtime's",
    "input.allow_ragged_batch": "the rows of a batch have one shape",
    "input.optional": "every input must come with every request",
    "output.is_shape_tensor": "shape tensors are TensorRT's, not ONNX Runtime's",
    "output.is_non_linear_format_io": "such formats are TensorRT's, not ONNX Runtime's",
    "batch_input": "inputs come from requests alone",
    "batch_output": "every output has a row for each row of the request",
    "sequence_batching": "requests are independent of each other",
    "ensemble_scheduling": "a model is one ONNX file",
    "instance_group.passive": "such instances would never be asked",
    "optimization.execution_accelerators.cpu_execution_accelerator": "the CPU runs ONNX Runtime's own kernels",
    "model_operations": "libraries with operators of their own are code, which a repository must not bring along",
    "model_transaction_policy.decoupled": "a request has one response",
    "model_repository_agents": "what they were to check or decrypt would be served as it is",
}
"""Messages or fields, with the reason."""

IGNORED = {
    "runtime": "there is one, ONNX Runtime",
    "instance_group.rate_limiter": "models share the processor by the scheduler's rules",
    "instance_group.secondary_devices": "instances run on one device",
    "instance_group.profile": "it is for TensorRT plans; the tensorrt accelerator has trt_profile_min_shapes and more",
    "instance_group.host_policy": "there are no host policies",
    "optimization.priority": "ONNX Runtime's sessions have none",
    "optimization.cuda": "it is for TensorRT plans; the tensorrt accelerator has trt_cuda_graph_enable",
    "optimization.input_pinned_memory": "ONNX Runtime copies by itself",
    "optimization.output_pinned_memory": "ONNX Runtime copies by itself",
    "optimization.gather_kernel_buffer_threshold": "batches are gathered on the CPU",
    "optimization.eager_batching": "batches are gathered when an instance is free",
    "cc_model_filenames": "every GPU runs default_model_filename",
    "metric_tags": "metrics have the labels model and version",
    "response_cache": "there is no response cache",
    "model_metrics": "the buckets of the histograms are the server's",
}
"""Messages or fields, with the reason."""


def refused(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The fields of a configuration that cannot be served, each with the reason."""
    return _listed(config, REFUSED)


def ignored(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The fields of a configuration that have no effect, each with the reason."""
    yield from _listed(config, IGNORED)
    for path in dict.fromkeys(present_fields(config)):
        if treatment(path) is None:
            yield path, "this version of the server does not know it"
    yield from ((f"parameter {name}", "unknown") for name in sorted(config.parameters) if name not in PARAMETERS)


def treatment(path: str) -> str | None:
    """What becomes of a field: `honoured`, `refused` or `ignored`; None where nobody has thought of it."""
    if path in HONOURED:
        return "honoured"
    ancestors = {path[:end] for end, letter in enumerate(path + ".") if letter == "."}
    if ancestors & REFUSED.keys():
        return "refused"
    return "ignored" if ancestors & IGNORED.keys() else None


def present_fields(message: Message, prefix: str = "") -> Iterator[str]:
    """The paths of all messages and fields that are set; elements of lists and maps have no path of their own."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if not is_leaf(field):
            yield from (nested for part in _parts(field, value) for nested in present_fields(part, f"{path}."))
        if is_leaf(field) or path in REFUSED or path in IGNORED:
            yield path


def is_leaf(field: FieldDescriptor) -> bool:
    """Whether a field has no fields of its own that could be set."""
    kind = value_type(field)
    return kind is None or not kind.fields


def value_type(field: FieldDescriptor) -> Descriptor | None:
    """The type of the messages that a field holds, in itself, in a list or as the values of a map; None for others."""
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return kind.fields_by_name["value"].message_type
    return kind


def _parts(field: FieldDescriptor, value: Any) -> Iterator[Message]:  # noqa: ANN401 - a message, a list or a map
    if field.message_type is not value_type(field):
        yield from value.values()
    elif field.is_repeated:
        yield from value
    else:
        yield value


def _listed(config: ModelConfig, reasons: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    present = set(present_fields(config))
    return ((path, reason) for path, reason in reasons.items() if path in present)
