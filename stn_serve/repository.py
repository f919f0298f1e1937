"""A model repository on disk, in Triton's layout: its models, their versions, and what each `config.pbtxt` says.

model_repository/NAME/config.pbtxt   the model's only serving configuration
model_repository/NAME/labels.txt     named by an output's label_filename
model_repository/NAME/VERSION/model.onnx
"""

from __future__ import annotations

import logging
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from stn_serve.config_fields import ignored, refused
from stn_serve.config_rules import CONFIG_FILE, problems
from stn_serve.errors import ConfigurationError

BACKEND = "onnxruntime"
PLATFORM = "onnxruntime_onnx"

logger = logging.getLogger(__name__)


def find_models(repository: Path) -> list[Path]:
    """The directories of the repository's models, by name; none where it holds none.

    Raises:
        ConfigurationError: the repository is not a directory, or cannot be read.
    """
    if not repository.is_dir():
        raise ConfigurationError(f"model repository {repository} is not a directory")
    try:
        return sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"model repository {repository} cannot be read: {error.strerror}") from error


def model_directories(repository: Path) -> list[Path]:
    """As `find_models`, of a repository that must hold one.

    Raises:
        ConfigurationError: the repository is not a directory, cannot be read, or holds no model.
    """
    directories = find_models(repository)
    if not directories:
        raise ConfigurationError(
            f"model repository {repository} holds no model: expected NAME/config.pbtxt and NAME/1/model.onnx in it, "
            f"as `stn export CHECKPOINT --repository {repository} --name NAME` writes them"
        )
    return directories


def read_config(directory: Path) -> ModelConfig:
    """The `config.pbtxt` of a model's directory, checked, with Triton's defaults filled in.

    Raises:
        ConfigurationError: it is missing, does not parse, or asks for what this server cannot do.
    """
    path = directory / CONFIG_FILE
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except FileNotFoundError as error:
        raise ConfigurationError(f"model '{directory.name}' has no {CONFIG_FILE}") from error
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigurationError(f"model '{directory.name}': {CONFIG_FILE} cannot be read: {error}") from error
    config.name = config.name or directory.name
    _check(config, directory)
    _fill_defaults(config)
    _check_backend(config)
    _warn_of_ignored(config)
    return config


def served_versions(directory: Path, config: ModelConfig) -> list[int]:
    """The versions that the version policy chooses among the directory's, oldest first.

    Raises:
        ConfigurationError: there is none.
    """
    names = [path.name for path in directory.iterdir() if path.is_dir()]
    present = sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            chosen = present
        case "specific":
            chosen = sorted(set(present) & set(policy.specific.versions))
        case _:
            chosen = present[-policy.latest.num_versions :]
    if not chosen:
        raise ConfigurationError(
            f"at least one version must be available under the version policy of model '{config.name}', "
            f"its directory has {present or 'none'}"
        )
    return chosen


def _fill_defaults(config: ModelConfig) -> None:
    if config.backend in ("", BACKEND) and config.platform in ("", PLATFORM):
        config.backend, config.platform = BACKEND, PLATFORM
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if not config.version_policy.WhichOneof("policy_choice"):
        config.version_policy.latest.num_versions = 1
    if config.version_policy.HasField("latest"):
        config.version_policy.latest.num_versions = max(config.version_policy.latest.num_versions, 1)
    config.optimization.SetInParent()
    if not config.instance_group:
        config.instance_group.add()
    for number, group in enumerate(config.instance_group):
        group.name = group.name or f"{config.name}_{number}"
        group.count = max(group.count, 1)


def _check(config: ModelConfig, directory: Path) -> None:
    for path, reason in refused(config):
        raise ConfigurationError(f"model '{config.name}': {path} is not supported: {reason}")
    for severity, problem, remedy in problems(config, directory):
        if severity == "error":
            raise ConfigurationError(f"model '{config.name}': {problem}: {remedy}")
        logger.warning("model '%s': %s: %s", config.name, problem, remedy)


def _check_backend(config: ModelConfig) -> None:
    if config.platform != PLATFORM or config.backend != BACKEND:
        raise ConfigurationError(
            f"model '{config.name}': backend '{config.backend or config.platform}' is not supported, "
            f'expected backend: "{BACKEND}"'
        )


def _warn_of_ignored(config: ModelConfig) -> None:
    """What has no effect, in one line."""
    names = [f"{path} ({reason})" for path, reason in ignored(config)]
    if names:
        logger.warning("model '%s': %s has no effect here: %s", config.name, CONFIG_FILE, "; ".join(names))
