"""Settings from flags, the environment and a TOML file, in this order of precedence; none is written down twice.

typer's options do the work: a flag before a variable, a variable before `default_map`, which holds the file.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from stn_serve.errors import ConfigurationError
from stn_serve.settings import SETTINGS, ServerSettings, Setting

PREFIX = "STN_SERVE_"


def environment_variable(name: str) -> str:
    """What a setting is called in the environment; values of a list are separated by spaces."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return "--" + name.replace("_", "-")


def parameters() -> list[inspect.Parameter]:
    """The settings as parameters of a typer command, the configuration file first."""
    config = Annotated[
        Path | None,
        typer.Option(
            help="TOML file with settings, such as grpc_port = 8001.",
            envvar=environment_variable("config"),
            is_eager=True,
            callback=_read_into,
        ),
    ]
    first = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config)
    return [first, *(_parameter(setting) for setting in SETTINGS)]


def read_settings(values: dict[str, Any]) -> ServerSettings:
    """Settings from the values of `parameters`.

    Raises:
        ConfigurationError: one is outside its limits, or they contradict each other.
    """
    chosen = {setting.name: values[setting.name] for setting in SETTINGS}
    lists: dict[str, Any] = {
        setting.name: tuple(chosen[setting.name] or ()) for setting in SETTINGS if _is_list(setting)
    }
    return ServerSettings(**chosen | lists)


def to_document(settings: ServerSettings) -> dict[str, Any]:
    """What a file could hold, as JSON and TOML have it; without what is not set."""
    values = {setting.name: getattr(settings, setting.name) for setting in SETTINGS}
    return {name: _plain(value) for name, value in values.items() if value is not None}


def from_document(document: dict[str, Any]) -> ServerSettings:
    """The settings that `to_document` has taken apart."""
    given = [setting for setting in SETTINGS if setting.name in document]
    paths = {setting.name: Path(document[setting.name]) for setting in given if _kind(setting) is Path}
    return read_settings({setting.name: setting.default for setting in SETTINGS} | document | paths)


def show(settings: ServerSettings, context: typer.Context) -> str:
    """All settings as a TOML file that could be used again, each with where it comes from.

    No setting holds a secret: tokens and keys are in files and variables that settings only name.
    """
    topics = dict.fromkeys(setting.about.topic for setting in SETTINGS)
    document = to_document(settings)
    return "\n\n".join("\n".join(_topic(topic, document, context)) for topic in topics)


def _topic(topic: str, document: dict[str, Any], context: typer.Context) -> Iterator[str]:
    yield f"# {topic}"
    for name in (setting.name for setting in SETTINGS if setting.about.topic == topic):
        # JSON's strings, numbers and lists are TOML's.
        value = json.dumps(document.get(name), ensure_ascii=False)
        line = f"{name} = {value}" if name in document else f"# {name} is not set"
        yield f"{line}  # {_origin(name, context)}"


def _origin(name: str, context: typer.Context) -> str:
    source = context.get_parameter_source(name)
    origins = {
        "COMMANDLINE": f"flag {flag(name)}",
        "ENVIRONMENT": f"environment variable {environment_variable(name)}",
        "DEFAULT_MAP": f"file {context.params['config']}",
    }
    return origins.get(source.name if source else "", "default")


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def _parameter(setting: Setting) -> inspect.Parameter:
    names = [flag(setting.name)]
    if setting.type is bool:
        names = [f"{names[0]}/--no-{names[0][2:]}"]
    option = typer.Option(
        *names,
        help=setting.about.help,
        envvar=environment_variable(setting.name),
        show_envvar=False,
        rich_help_panel=setting.about.topic,
    )
    kind = list[str] if _is_list(setting) else setting.type
    default = list(setting.default) if _is_list(setting) else setting.default
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _is_list(setting: Setting) -> bool:
    return get_origin(setting.type) is tuple


def _read_into(context: typer.Context, path: Path | None) -> Path | None:
    """Put a file's settings below the flags and the environment."""
    if path:
        context.default_map = _read(path)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"configuration {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"configuration {path} is not TOML: {error}") from error
    known = {setting.name: setting for setting in SETTINGS}
    for name, value in document.items():
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "`stn serve --help` lists them"
            raise ConfigurationError(f"configuration {path}: there is no setting '{name}'; {hint}")
        if not _fits(value, known[name]):
            raise ConfigurationError(f"configuration {path}: {name} is {value!r}, expected {_words(known[name])}")
    return document


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", Path: "a string"}


def _fits(value: object, setting: Setting) -> bool:
    if _is_list(setting):
        return isinstance(value, list) and all(isinstance(element, str) for element in value)
    wanted = {bool: bool, int: int, float: int | float}.get(_kind(setting), str)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _words(setting: Setting) -> str:
    return "a list of strings" if _is_list(setting) else KINDS[_kind(setting)]


def _kind(setting: Setting) -> type:
    """`Path` of `Path | None`."""
    kind: type = get_args(setting.type)[0] if get_args(setting.type) else setting.type
    return kind
