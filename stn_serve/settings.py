"""What a server is started with: each setting once, with its type, default, limits and help.

The flags of `stn serve`, the environment variables and the keys of a configuration file all derive from here: see
`setting_sources`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

from stn_serve.errors import ConfigurationError


@dataclass(frozen=True)
class About:
    """What a setting is for, and what it may be."""

    topic: str
    """Under which the help lists it."""
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:  # noqa: ANN401 - of the setting's type
        """Refuse what is outside.

        Raises:
            ConfigurationError: names the setting, what it is and what was expected.
        """
        if self.choices and value not in self.choices:
            *others, last = self.choices
            raise ConfigurationError(f"{name} is '{value}', expected {', '.join(others)} or {last}")
        if self.minimum is None or value is None:
            return
        if self.maximum is None and not self.minimum <= value < float("inf"):
            raise ConfigurationError(f"{name} is {value}, expected {self.minimum} or more")
        if self.maximum is not None and not self.minimum <= value <= self.maximum:
            raise ConfigurationError(f"{name} is {value}, expected {self.minimum} to {self.maximum}")


Port = Annotated[int, About("Network", "0 takes a free port.", 0, 65535)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Checked when it is made."""

    engine: Annotated[
        str,
        About(
            "Models",
            "onnxruntime: compute here; triton: be a gateway to the Tritons of --triton-url.",
            choices=("onnxruntime", "triton"),
        ),
    ] = "onnxruntime"
    model_repository: Annotated[
        Path, About("Models", "Directory with NAME/config.pbtxt and NAME/1/model.onnx for each model.")
    ] = Path("model_repository")
    model_control_mode: Annotated[
        str,
        About(
            "Models",
            "none; poll: follow the changes of the repository; explicit: clients load and unload models.",
            choices=("none", "poll", "explicit"),
        ),
    ] = "none"
    repository_poll_secs: Annotated[
        float, About("Models", "Seconds between two looks at the repository, with --model-control-mode poll.", 0.1)
    ] = 15.0
    load_model: Annotated[
        tuple[str, ...],
        About("Models", "A model to start with, with --model-control-mode explicit; more than once, or '*' for all."),
    ] = ()

    host: Annotated[str, About("Network", "Where to listen; 0.0.0.0 for every interface.")] = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Port = 8000
    metrics_port: Port = 8002

    triton_url: Annotated[
        tuple[str, ...],
        About(
            "Triton",
            "HOST:PORT[,HOST:PORT...] of each Triton's gRPC, with --engine triton; grpcs://HOST:PORT with TLS.",
        ),
    ] = ()
    triton_ca: Annotated[Path | None, About("Triton", "Certificates to trust, PEM; by default the system's.")] = None
    triton_cert: Annotated[
        Path | None, About("Triton", "The gateway's own certificate, PEM, where Triton wants one; with --triton-key.")
    ] = None
    triton_key: Annotated[Path | None, About("Triton", "The certificate's key, PEM.")] = None
    triton_header: Annotated[
        tuple[str, ...],
        About(
            "Triton",
            "NAME=file:PATH or NAME=env:NAME: sent with every call, for a Triton with --grpc-restricted-protocol. May "
            "be repeated.",
        ),
    ] = ()
    triton_timeout_s: Annotated[
        float, About("Triton", "Seconds until an answer of Triton is given up, where the caller allows more.", 0.001)
    ] = 60.0
    triton_max_in_flight: Annotated[
        int, About("Triton", "Requests that may be with one Triton at the same time; more are refused.", 1, 2**31 - 1)
    ] = 1024

    max_message_bytes: Annotated[
        int, About("Limits", "Largest request body or message, and largest encoded image.", 1, 2**31 - 1)
    ] = 64 * 2**20
    max_pending_bytes: Annotated[
        int | None,
        About(
            "Limits",
            "Bytes of requests in work, beyond which others are refused; a quarter of the memory if unset.",
            1,
        ),
    ] = None
    max_image_pixels: Annotated[
        int, About("Limits", "Largest width times height of an image that is decoded.", 1, 2**31 - 1)
    ] = 50_000_000
    allow_shared_memory: Annotated[
        bool,
        About(
            "Security",
            "Clients on this machine may pass tensors in shared memory, and so read and write what is in there.",
        ),
    ] = False

    allow_log_settings: Annotated[bool, About("Security", "Clients may change which levels are logged.")] = False
    tls_cert: Annotated[
        Path | None, About("Security", "The server's certificate and those that vouch for it, PEM; with --tls-key.")
    ] = None
    tls_key: Annotated[Path | None, About("Security", "The certificate's key, PEM.")] = None
    tls_client_ca: Annotated[
        Path | None, About("Security", "Take only clients with a certificate from these authorities, PEM (mutual TLS).")
    ] = None
    tokens: Annotated[
        tuple[str, ...],
        About(
            "Security",
            "GROUP[,GROUP...]=file:PATH or =env:NAME: calls of these API groups need a bearer token from there. Groups "
            "are health, metadata, inference, model-config, model-repository, shared-memory, statistics, trace, "
            "logging, metrics and all. May be repeated.",
        ),
    ] = ()

    workers: Annotated[
        int, About("Process", "Processes that share the ports and the CPUs; each loads every model.", 1, 256)
    ] = 1
    grace_s: Annotated[
        float, About("Process", "Seconds that a stopping server waits for the requests in flight.", 0)
    ] = 30.0
    drain_s: Annotated[
        float,
        About("Process", "Seconds between being not ready and closing the ports, for load balancers to see it.", 0),
    ] = 0.0
    ready_file: Annotated[
        Path | None, About("Process", "Write the addresses to this file as JSON once the server is ready.")
    ] = None
    log_level: Annotated[
        str,
        About(
            "Logs",
            "debug (a line for each request), info (for those that fail), warning or error.",
            choices=("debug", "info", "warning", "error"),
        ),
    ] = "info"
    log_format: Annotated[str, About("Logs", "console, or json: one object a line.", choices=("console", "json"))] = (
        "console"
    )
    tracing: Annotated[
        bool,
        About("Traces", "Send OpenTelemetry traces to where OTEL_EXPORTER_OTLP_ENDPOINT says; an extra to install."),
    ] = False
    prediction_metrics: Annotated[
        bool,
        About("Metrics", "Count where models look, what they predict and how sure they are, for alarms on drift."),
    ] = True

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            setting.about.check(setting.name, getattr(self, setting.name))
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigurationError("tls_cert and tls_key belong together, but only one is given")
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigurationError("tls_client_ca is given, but there is no TLS without tls_cert and tls_key")
        ports = {name: getattr(self, name) for name in ("grpc_port", "http_port", "metrics_port")}
        taken = [port for port in ports.values() if port]
        if len(set(taken)) != len(taken):
            raise ConfigurationError(f"the ports must differ: {', '.join(f'{k} is {v}' for k, v in ports.items())}")
        self._check_engine()
        if self.load_model and self.model_control_mode != "explicit":
            raise ConfigurationError("load_model needs model_control_mode explicit: the others load every model")
        if "*" in self.load_model and len(self.load_model) > 1:
            raise ConfigurationError("load_model '*' is every model: name no other beside it")

    def _check_engine(self) -> None:
        if self.engine == "triton" and not self.triton_url:
            raise ConfigurationError("engine is triton, but triton_url does not say where it is")
        for name in ("triton_url", "triton_ca", "triton_cert", "triton_key", "triton_header"):
            if self.engine != "triton" and getattr(self, name):
                raise ConfigurationError(f"{name} is given, but engine is {self.engine}: set engine to triton")
        if self.engine == "triton" and self.model_control_mode != "none":
            raise ConfigurationError(f"model_control_mode is {self.model_control_mode}, but engine is triton")
        if bool(self.triton_cert) != bool(self.triton_key):
            raise ConfigurationError("triton_cert and triton_key belong together, but only one is given")

    @property
    def startup_models(self) -> tuple[str, ...] | None:
        """The models to load at start; None for all."""
        return self.load_model if self.model_control_mode == "explicit" and self.load_model != ("*",) else None


class Setting(NamedTuple):
    """A field of `ServerSettings`."""

    name: str
    type: Any
    """Without the annotation: `int`, `Path | None`, `tuple[str, ...]`."""
    default: Any
    about: About


def _settings() -> tuple[Setting, ...]:
    hints = get_type_hints(ServerSettings, include_extras=True)
    return tuple(Setting(field.name, *_parted(hints[field.name], field.default)) for field in fields(ServerSettings))


def _parted(hint: object, default: object) -> tuple[object, object, About]:
    kind, about = get_args(hint)
    return kind, default, about


SETTINGS = _settings()
