"""`stn serve`: start the server and say where it is."""

from __future__ import annotations

# ruff: noqa: E402 - threads that libraries start when they are imported would have heaps of their own
from stn_serve.malloc import use_one_heap

use_one_heap()

import inspect
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stn_serve import logs
from stn_serve.listening import Addresses
from stn_serve.server import Row, run
from stn_serve.setting_sources import parameters, read_settings, show

logger = logging.getLogger(__name__)


def serve(context: typer.Context, show_settings: bool, **values: Any) -> None:  # noqa: ANN401 - the settings
    """Serve the models of a repository over gRPC and HTTP, with metrics for Prometheus.

    For example:

        stn serve --model-repository model_repository

        stn serve --host 0.0.0.0 --grpc-port 9001 --http-port 9000 --metrics-port 9002

        stn serve --model-control-mode poll --repository-poll-secs 5

        stn serve --model-control-mode explicit --load-model digits

        stn serve --engine triton --triton-url gpu-1:8001,gpu-2:8001

        stn serve --grpc-port 0 --http-port 0 --metrics-port 0 --ready-file addresses.json

        stn serve --show-settings > stn.toml; stn serve --config stn.toml

    Each setting may also be an environment variable, such as STN_SERVE_GRPC_PORT=9001, or a line of a TOML file, such
    as grpc_port = 9001. A flag comes before a variable, and a variable before the file.
    """
    settings = read_settings(values)
    if show_settings:
        typer.echo(show(settings, context))
        return
    logs.configure(settings.log_level, settings.log_format)
    secure = settings.tls_cert is not None
    run(settings, log_announcement if settings.log_format == "json" else partial(announce, secure=secure))


def _signature() -> inspect.Signature:
    """Of the command: its flags are the settings."""
    own = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            "show_settings",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=False,
            annotation=Annotated[
                bool, typer.Option("--show-settings", help="Print every setting and where it comes from, and end.")
            ],
        ),
    ]
    return inspect.Signature([*own, *parameters()])


# typer reads both.
serve.__signature__ = _signature()  # type: ignore[attr-defined]
serve.__annotations__ = {name: parameter.annotation for name, parameter in _signature().parameters.items()}


def announce(rows: Sequence[Row], addresses: Addresses, secure: bool) -> None:
    """Print the models and the addresses."""
    console = Console()
    models = Table("model", "version", "state", "why not", title="models", title_justify="left")
    for name, version, is_served, reason in rows:
        state = "[green]ready" if is_served else "[red]unavailable" if reason else "not loaded"
        models.add_row(name, version or "-", state, reason)
    ports = Table("service", "address", title="addresses", title_justify="left")
    s = "s" if secure else ""
    ports.add_row("gRPC", f"grpcs://{addresses.grpc}" if secure else addresses.grpc)
    ports.add_row("HTTP", f"http{s}://{addresses.http}")
    ports.add_row("metrics", f"http{s}://{addresses.metrics}/metrics")
    with suppress(OSError):  # stdout may lead to a full disk, or be closed
        console.print(models, ports)


def log_announcement(rows: Sequence[Row], addresses: Addresses) -> None:
    """The same for machines, as lines of the log."""
    for name, version, is_served, reason in rows:
        fields = {"model": name, "version": version, "reason": reason}
        logger.info("model %s", "ready" if is_served else "unavailable", extra={"fields": fields})
    logger.info("serving", extra={"fields": asdict(addresses)})
