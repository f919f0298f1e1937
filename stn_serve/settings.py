"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stn_serve.errors import ConfigurationError

CONTROL_MODES = ("none", "explicit")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Checked when it is made; each field is a flag of `stn serve`."""

    model_repository: Path
    model_control_mode: str = "none"
    """`explicit` lets clients load and unload models."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 is every interface."""
    grpc_port: int = 8001
    """0 takes a free one; so do the others."""
    http_port: int = 8000
    metrics_port: int = 8002
    max_message_bytes: int = 64 * 2**20
    """Largest request body or message, and largest encoded image."""
    max_image_pixels: int = 50_000_000
    """Largest width times height of an image that is decoded."""
    allow_shared_memory: bool = False
    """Whether clients on this machine may pass tensors in shared memory, and so read and write what is in there."""
    grace_s: float = 30.0
    """How long a stopping server waits for the requests in flight."""
    ready_file: Path | None = None
    """Where to write the addresses as JSON once the server is ready."""

    def __post_init__(self) -> None:
        if self.model_control_mode not in CONTROL_MODES:
            raise ConfigurationError(
                f"model_control_mode is '{self.model_control_mode}', expected {' or '.join(CONTROL_MODES)}"
            )
        ports = {"grpc_port": self.grpc_port, "http_port": self.http_port, "metrics_port": self.metrics_port}
        for name, port in ports.items():
            if not 0 <= port <= 65535:
                raise ConfigurationError(f"{name} is {port}, expected 0 to 65535")
        taken = [port for port in ports.values() if port]
        if len(set(taken)) != len(taken):
            raise ConfigurationError(f"the ports must differ: {', '.join(f'{k} is {v}' for k, v in ports.items())}")
        for name in ("max_message_bytes", "max_image_pixels"):
            if not 0 < getattr(self, name) < 2**31:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, expected 1 to {2**31 - 1}")
        if not 0 <= self.grace_s < float("inf"):
            raise ConfigurationError(f"grace_s is {self.grace_s}, expected a time in seconds")
