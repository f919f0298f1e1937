"""`stn health`: whether the server that the settings describe is ready; probes of containers run it."""

from __future__ import annotations

import inspect
import ssl
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

import typer

from stn_serve.access import token_for
from stn_serve.errors import ConfigurationError
from stn_serve.listening import host_port
from stn_serve.setting_sources import parameters, read_settings
from stn_serve.settings import ServerSettings

TIMEOUT_S = 3.0
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to ask a server that listens everywhere


def health(**values: Any) -> None:  # noqa: ANN401 - the settings
    """Ask the server on this machine whether it is ready: exit code 0 if it is, 1 if it is not or does not answer.

    It takes the settings of `stn serve`, from the same flags, variables and file, and so knows where to ask and how:

        stn health

        stn health --http-port 9000

        STN_SERVE_CONFIG=stn.toml stn health

    With TLS the server's certificate is not examined, because this machine asks itself; with mutual TLS it is the one
    that is shown. A token, where one is wanted, is taken from where the server has it.
    """
    problem = ask(read_settings(values))
    typer.echo(f"not ready: {problem}" if problem else "ready", err=bool(problem))
    raise typer.Exit(1 if problem else 0)


# typer reads both.
health.__signature__ = inspect.Signature(parameters())  # type: ignore[attr-defined]
health.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters()}


def ask(settings: ServerSettings) -> str:
    """Why the server of these settings is not ready; nothing if it is."""
    if not settings.http_port:
        raise ConfigurationError("http_port is 0, a free port that only the server knows: its --ready-file has it")
    scheme = "https" if settings.tls_cert else "http"
    host = WILDCARDS.get(settings.host, settings.host)
    url = f"{scheme}://{host_port(host, settings.http_port)}/v2/health/ready"
    token = token_for(settings.tokens, "health")
    # No proxy: the environment's is for the world outside.
    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=_context(settings)))
    if token:
        opener.addheaders = [("Authorization", f"Bearer {token}")]
    try:
        with opener.open(url, timeout=TIMEOUT_S):
            return ""
    except HTTPError as error:
        with error:
            return f"{url} answers {error.code} {error.read(200).decode(errors='replace')}".rstrip()
    except OSError as error:
        return f"{url}: {getattr(error, 'reason', error)}"


def _context(settings: ServerSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls_cert and settings.tls_client_ca:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context
