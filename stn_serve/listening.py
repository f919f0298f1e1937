"""Ports: found taken before anything is loaded."""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from stn_serve.errors import ConfigurationError

BACKLOG = 2048
"""Connections that may wait to be accepted."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running server listens, each as `host:port`."""

    grpc: str
    http: str
    metrics: str

    def write(self, path: Path) -> None:
        """Write them as JSON, at once and whole: who waits for the file may read it as soon as it is there."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self)))
        unfinished.replace(path)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, which does not listen yet; a port of 0 takes a free one.

    Args:
        host: A name or address of this machine.
        port: The port.

    Raises:
        ConfigurationError: the port is taken, or the host is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"cannot listen on port {port} of {host}: {reason}") from error
    return listener


def address(listener: socket.socket) -> str:
    """`host:port` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return host_port(host, port)


def host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an address of IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
