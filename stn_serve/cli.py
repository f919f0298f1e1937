"""The command `stn`.

Its commands live beside what they command and are imported when they run, so that `stn serve` and `stn --help` work
where torch is not installed. Each is a plain function with typer annotations, its docstring the long help, or a
`typer.Typer` with commands of its own: `COMMANDS` names its module, the function and the line that `stn --help` shows.

What a user can mend ends as one line on stderr and exit code 2: commands raise `ServingError`, `ValueError` or
`OSError` with a message for the user. Set `STN_TRACEBACK=1` to see where it came from.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from stn_serve.errors import ConfigurationError, ServingError


class Target(NamedTuple):
    """Where a command's function is, and its line of help."""

    module: str
    function: str
    help: str


COMMANDS = {
    "serve": Target("stn_serve.serve", "serve", "Serve the models of a repository over gRPC and HTTP."),
    "demo": Target("export.demo", "demo", "Train, export, serve and ask: the whole way in one command."),
    "train": Target("training.cli", "train", "Train a network from a recipe."),
    "evaluate": Target("training.cli", "evaluate", "Measure a checkpoint on its test set."),
    "export": Target("export.cli", "export", "Turn a checkpoint into a model repository entry, proven equal."),
    "models": Target("stn_serve.models_cli", "models", "List, show, check and remove the models of a repository."),
    "tune": Target("stn_serve.tune", "tune", "Find a model's best settings on this machine, by measuring."),
    "health": Target("stn_serve.health", "health", "Ask the server on this machine whether it is ready."),
    "predict": Target("stn_serve.predict", "predict", "Ask a running server about images."),
}

EXTRAS = {"torch": "train", "matplotlib": "train", "sklearn": "train", "pooch": "train", "onnx": "export"}
"""What a missing package is installed with."""


class LazyCommand(TyperCommand):
    """A command that is imported when it is called, not when it is listed."""

    def __init__(self, name: str, target: Target) -> None:
        super().__init__(name, help=target.help)
        self.target = target

    def make_context(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - typer's own signature
        """Parse the arguments with the command itself; its context stands for it from here on."""
        loaded = _load(self.target)
        app = loaded if isinstance(loaded, typer.Typer) else typer.Typer(add_completion=False)
        if app is not loaded:
            app.command(self.name)(loaded)
        return typer.main.get_command(app).make_context(*args, **kwargs)


class LazyGroup(TyperGroup):
    """The commands that are registered, and those of `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's own signature
        """In the order of the help."""
        return [*super().list_commands(ctx), *COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401 - typer's own signature
        """A registered command, a lazy one, or None."""
        if cmd_name in COMMANDS:
            return LazyCommand(cmd_name, COMMANDS[cmd_name])
        return super().get_command(ctx, cmd_name)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def about() -> None:
    """Train, export and serve spatial transformer networks: what is it, and where did the model look?"""


def main() -> None:
    """Run the command line; what a user can mend becomes one line and exit code 2."""
    try:
        app()
    except (ServingError, ValueError, OSError) as error:
        if os.environ.get("STN_TRACEBACK"):
            raise
        print(f"stn: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - a command line
        sys.exit(2)


def _load(target: Target) -> Callable[..., Any] | typer.Typer:
    try:
        module = importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        raise ConfigurationError(
            f"this command needs {missing}, which is not installed: pip install 'stn-serve[{EXTRAS[missing]}]'"
        ) from error
    command: Callable[..., Any] | typer.Typer = getattr(module, target.function)
    return command
