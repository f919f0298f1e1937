"""`stn serve`: start the server and say where it is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from stn_serve.registry import ModelRegistry
from stn_serve.server import Addresses, run
from stn_serve.settings import ServerSettings

DEFAULTS = ServerSettings(model_repository=Path("model_repository"))


def serve(
    model_repository: Annotated[
        Path, typer.Option(help="Directory with NAME/config.pbtxt and NAME/1/model.onnx for each model.")
    ] = DEFAULTS.model_repository,
    model_control_mode: Annotated[
        str, typer.Option(help="none, or explicit: clients may load and unload models.")
    ] = DEFAULTS.model_control_mode,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for every interface.")] = DEFAULTS.host,
    grpc_port: Annotated[int, typer.Option(help="0 takes a free port.")] = DEFAULTS.grpc_port,
    http_port: Annotated[int, typer.Option(help="0 takes a free port.")] = DEFAULTS.http_port,
    metrics_port: Annotated[int, typer.Option(help="0 takes a free port.")] = DEFAULTS.metrics_port,
    max_message_bytes: Annotated[int, typer.Option(help="Largest request and image.")] = DEFAULTS.max_message_bytes,
    max_image_pixels: Annotated[int, typer.Option(help="Largest width x height.")] = DEFAULTS.max_image_pixels,
    allow_shared_memory: Annotated[
        bool, typer.Option("--allow-shared-memory", help="Clients on this machine may pass tensors in shared memory.")
    ] = DEFAULTS.allow_shared_memory,
    grace_s: Annotated[
        float, typer.Option(help="Seconds that a stopping server waits for the requests in flight.")
    ] = DEFAULTS.grace_s,
    ready_file: Annotated[
        Path | None, typer.Option(help="Write the addresses to this file as JSON once the server is ready.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the models of a repository over gRPC and HTTP, with metrics for Prometheus.

    For example:

        stn serve --model-repository model_repository

        stn serve --host 0.0.0.0 --grpc-port 9001 --http-port 9000 --metrics-port 9002

        stn serve --grpc-port 0 --http-port 0 --metrics-port 0 --ready-file addresses.json
    """
    _configure_logging(log_level)
    settings = ServerSettings(
        model_repository=model_repository,
        model_control_mode=model_control_mode,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        max_message_bytes=max_message_bytes,
        max_image_pixels=max_image_pixels,
        allow_shared_memory=allow_shared_memory,
        grace_s=grace_s,
        ready_file=ready_file,
    )
    run(settings, announce)


def announce(registry: ModelRegistry, addresses: Addresses) -> None:
    """Print the models and the addresses."""
    console = Console()
    models = Table("model", "version", "state", "why not", title="models", title_justify="left")
    for entry in registry.index:
        state = "[green]ready" if entry.served else "[red]unavailable"
        models.add_row(entry.name, str(entry.version or "-"), state, entry.reason)
    ports = Table("service", "address", title="addresses", title_justify="left")
    ports.add_row("gRPC", addresses.grpc)
    ports.add_row("HTTP", f"http://{addresses.http}")
    ports.add_row("metrics", f"http://{addresses.metrics}/metrics")
    console.print(models, ports)


def _configure_logging(level: str) -> None:
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise ValueError(f"--log-level is {level!r}, expected debug, info, warning or error")
    logging.basicConfig(level=levels[level.upper()], format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(max(levels[level.upper()], logging.WARNING))
