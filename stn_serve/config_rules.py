"""What contradicts itself in a `config.pbtxt`, or the files beside it: Triton refuses most of it at load, we all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Literal

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInput, ModelInstanceGroup, ModelOutput

from stn_serve import scheduling

CONFIG_FILE = "config.pbtxt"

Severity = Literal["error", "warning"]
Problem = tuple[Severity, str, str]
"""How bad it is, what it is, and what to do."""


def problems(config: ModelConfig, directory: Path) -> Iterator[Problem]:
    """Everything that is wrong with a configuration; an `error` keeps the model from being served."""
    return (problem for rule in RULES for problem in rule(config, directory))


def _check_name(config: ModelConfig, directory: Path) -> Iterator[Problem]:
    if config.name and config.name != directory.name:
        yield (
            "error",
            f"directory name must equal model name, which {CONFIG_FILE} says is '{config.name}'",
            f'rename the directory, or set name: "{directory.name}", or leave it out',
        )


def _check_tensors(config: ModelConfig, _: Path) -> Iterator[Problem]:
    for role, tensors in (("input", config.input), ("output", config.output)):
        names = Counter(tensor.name for tensor in tensors)
        for name in [name for name, count in names.items() if count > 1]:
            yield "error", f"{role} '{name}' is declared more than once", "declare each name once"
        for tensor in tensors:
            where = f"{role} '{tensor.name}'"
            if not tensor.name:
                yield "error", f"an {role} has no name", "give it the name it has in the ONNX file"
            if tensor.data_type == DataType.TYPE_INVALID:
                yield "error", f"{where} must specify data_type", 'add one, such as "data_type: TYPE_FP32"'
            if tensor.HasField("reshape") and not _same_size(tensor):
                problem = f"{where} has dims {list(tensor.dims)}, but reshape {list(tensor.reshape.shape)}"
                yield "error", problem, "give both the same number of elements and of sizes that are -1"
            if not tensor.dims:
                yield "error", f"{where} must specify dims", "add the sizes, without the batch axis"
            if any(dim < 1 and dim != -1 for dim in tensor.dims):
                problem = f"{where} has dims {list(tensor.dims)}, expected sizes >= 1, or -1 for any size"
                yield "error", problem, "take the sizes of the ONNX file, without the batch axis"


def _check_formats(config: ModelConfig, _: Path) -> Iterator[Problem]:
    for tensor in config.input:
        if tensor.format != ModelInput.FORMAT_NONE and len(tensor.dims) != 3:
            problem = f"input '{tensor.name}' has format {ModelInput.Format.Name(tensor.format)}, but not 3 dims"
            yield "error", problem, "leave format out, or give height, width and channels"


def _same_size(tensor: ModelInput | ModelOutput) -> bool:
    declared, shape = list(tensor.dims), list(tensor.reshape.shape)
    return declared.count(-1) == shape.count(-1) and abs(prod(declared)) == abs(prod(shape))


def _check_batching(config: ModelConfig, _: Path) -> Iterator[Problem]:
    if config.max_batch_size < 0:
        yield "error", f"max_batch_size is {config.max_batch_size}, expected >= 0", "0 is for a model without a batch"
    if not config.HasField("dynamic_batching"):
        return
    for problem, remedy in scheduling.problems(config):
        yield "error", problem, remedy
    if not config.max_batch_size:
        remedy = "set max_batch_size, or take dynamic_batching away"
        yield "warning", "dynamic_batching without max_batch_size batches nothing", remedy


def _check_instances(config: ModelConfig, _: Path) -> Iterator[Problem]:
    for group in config.instance_group:
        kind = ModelInstanceGroup.Kind.Name(group.kind)
        if group.kind == ModelInstanceGroup.KIND_CPU and group.gpus:
            problem = f"instance_group has kind {kind} but specifies GPUs {list(group.gpus)}"
            yield "error", problem, "set KIND_GPU, or take gpus away"
        if group.count < 0:
            yield "error", f"instance_group has count {group.count}, expected >= 1", "set a count, or leave it out"


def _check_version_directories(config: ModelConfig, directory: Path) -> Iterator[Problem]:
    policy = config.version_policy
    names = {path.name for path in directory.iterdir() if path.is_dir()}
    for name in sorted(names):
        if name not in ("warmup", "configs") and (not name.isdecimal() or name.startswith("0")):
            yield "warning", f"directory '{name}' is no version and is ignored", "versions are 1, 2, 3, ..."
    for version in policy.specific.versions:
        if str(version) not in names:
            problem = f"version_policy asks for version {version}, which has no directory"
            yield "warning", problem, "take it out of the policy, or put the version back"


def _check_labels(config: ModelConfig, directory: Path) -> Iterator[Problem]:
    for tensor in config.output:
        if tensor.label_filename:
            yield from _check_label_file(tensor, directory / tensor.label_filename)


def _check_label_file(tensor: ModelOutput, path: Path) -> Iterator[Problem]:
    try:
        count = len(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        problem = f"output '{tensor.name}': labels cannot be read from {path.name}: {error.__class__.__name__}"
        yield "error", problem, "write one label a line, in UTF-8"
        return
    classes = tensor.dims[-1] if tensor.dims else count
    if classes not in (count, -1):
        problem = f"output '{tensor.name}' has {classes} classes, but {path.name} has {count} labels"
        yield "error", problem, "write one label for each class, in the order of the output"


def _check_warmup(config: ModelConfig, _: Path) -> Iterator[Problem]:
    declared = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        where = f"model_warmup '{sample.name}'"
        if sample.batch_size > max(config.max_batch_size, 1):
            problem = f"{where} has batch_size {sample.batch_size}, max_batch_size is {config.max_batch_size}"
            yield "error", problem, "lower it"
        for name in sorted(set(declared) ^ set(sample.inputs)):
            found = "names an input" if name in sample.inputs else "lacks input"
            yield "error", f"{where} {found} '{name}'", f"name the model's inputs: {', '.join(declared)}"
        for name in sorted(set(declared) & set(sample.inputs)):
            given, tensor = sample.inputs[name], declared[name]
            if given.data_type != tensor.data_type or not _fits(list(given.dims), list(tensor.dims)):
                expected = f"{DataType.Name(tensor.data_type)} {list(tensor.dims)}"
                problem = f"{where}: input '{name}' is {DataType.Name(given.data_type)} {list(given.dims)}"
                yield "error", f"{problem}, the model's is {expected}", "give it the model's type and dims"


def _fits(given: list[int], declared: list[int]) -> bool:
    return len(given) == len(declared) and all(d in (-1, g) for g, d in zip(given, declared, strict=True))


RULES: tuple[Callable[[ModelConfig, Path], Iterator[Problem]], ...] = (
    _check_name,
    _check_tensors,
    _check_formats,
    _check_batching,
    _check_instances,
    _check_version_directories,
    _check_labels,
    _check_warmup,
)
"""Each finds what is wrong with one part of a configuration."""
