"""A model repository held against what Triton and `stn serve` ask of it, before a server is started on it.

Triton checks a configuration against its schema and itself, but not against the model, its labels or its warm-up: what
is wrong there ends in a model that does not load, or in answers without labels. All of it is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from stn_serve.config_rules import CONFIG_FILE, Severity, problems
from stn_serve.errors import ConfigurationError
from stn_serve.metadata import METADATA_KEY
from stn_serve.model import Model
from stn_serve.repository import model_directories, read_config, served_versions
from stn_serve.warmup import warm_up


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a model, and what to do."""

    model: str
    version: int | None
    """None for what concerns all versions."""
    severity: Severity
    """An `error` keeps the model, or the version, from being served rightly."""
    problem: str
    remedy: str


def check_repository(repository: Path, only: str | None = None) -> list[Finding]:
    """Everything that is wrong with the models of a repository, or with one of them.

    Raises:
        ConfigurationError: there is no repository, no model in it, or none of this name.
    """
    return [finding for directory in directories(repository, only) for finding in check_model(directory)]


def directories(repository: Path, only: str | None = None) -> list[Path]:
    """The directories of the models, or of one.

    Raises:
        ConfigurationError: there is no repository, no model in it, or none of this name.
    """
    found = model_directories(repository)
    chosen = [directory for directory in found if only in (None, directory.name)]
    if not chosen:
        names = ", ".join(directory.name for directory in found)
        raise ConfigurationError(f"repository {repository} has no model '{only}', but {names}")
    return chosen


def check_model(directory: Path) -> list[Finding]:
    """Everything that is wrong with one model."""
    try:
        config = text_format.Parse((directory / CONFIG_FILE).read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError:
        remedy = "write one, or remove the directory if it is no model's"
        return [Finding(directory.name, None, "error", f"has no {CONFIG_FILE}", remedy)]
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        return [Finding(directory.name, None, "error", f"{CONFIG_FILE} cannot be read: {error}", "mend that line")]
    findings = [Finding(directory.name, None, *problem) for problem in problems(config, directory)]
    return findings + _check_versions(directory, errors=any(finding.severity == "error" for finding in findings))


def _check_versions(directory: Path, errors: bool) -> list[Finding]:
    """What the code that serves says of each version; of the configuration only what no rule has found."""
    try:
        config = read_config(directory)
        versions = served_versions(directory, config)
    except ConfigurationError as error:
        remedy = f"change {CONFIG_FILE} or the version directories"
        return [] if errors else [Finding(directory.name, None, "error", str(error), remedy)]
    return [finding for version in versions for finding in _check_version(directory, version, _without_gpu(config))]


def _check_version(directory: Path, version: int, config: ModelConfig) -> Iterator[Finding]:
    try:
        model = Model.load(directory, version, config)
        warm_up(model, directory)
    except ConfigurationError as error:
        remedy = f"make {CONFIG_FILE} and the model agree, or export the version again"
        yield Finding(directory.name, version, "error", str(error), remedy)
        return
    if model.metadata is None:
        problem = "carries no metadata 'stn': tensors are served, images and transforms are not"
        yield Finding(directory.name, version, "warning", problem, "export it with `stn export`")
    elif METADATA_KEY not in config.parameters:
        problem = f"{CONFIG_FILE} lacks parameter '{METADATA_KEY}': a gateway to Triton cannot serve images"
        yield Finding(directory.name, version, "warning", problem, "export it again, under another name")


def _without_gpu(config: ModelConfig) -> ModelConfig:
    """The same on the CPU: a repository can be checked where there is no GPU."""
    for group in config.instance_group:
        if group.kind == ModelInstanceGroup.KIND_GPU:
            group.kind = ModelInstanceGroup.KIND_AUTO
            del group.gpus[:]
    return config
