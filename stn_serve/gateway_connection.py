"""How the gateway reaches its Tritons: addresses, certificates, secrets, and one lasting connection to each.

HTTP/2 carries all requests to a Triton side by side over one connection, which is opened again when it breaks.
"""

from __future__ import annotations

import grpc

from stn_serve.addresses import Address, ConnectionOptions
from stn_serve.errors import ConfigurationError
from stn_serve.gateway_replica import Replica
from stn_serve.secret_source import SecretSource
from stn_serve.settings import ServerSettings

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # One that is back should be found again at the next look, not in two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # It may come back under the same name at another address.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)


def connect(settings: ServerSettings) -> list[Replica]:
    """The Tritons of the settings; nothing is sent yet.

    Raises:
        ConfigurationError: an address, a certificate or a secret that cannot be used.
    """
    headers = tuple(_header(rule) for rule in settings.triton_header)
    texts = [text.strip() for element in settings.triton_url for text in element.split(",")]
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        raise ConfigurationError(f"triton_url names {twice[0]} more than once")
    return [Replica(text, _channel(_address(text, settings)), headers) for text in texts]


def _address(text: str, settings: ServerSettings) -> Address:
    options: ConnectionOptions = {}
    if settings.triton_ca:
        options["ca"] = settings.triton_ca
    if settings.triton_cert and settings.triton_key:
        options |= {"cert": settings.triton_cert, "key": settings.triton_key}
    try:
        address = Address.parse(text, **options)
    except ValueError as error:
        raise ConfigurationError(f"triton_url: {error}") from error
    host, _, port = address.target.rpartition(":")
    if address.is_http or not host or not port.isdecimal() or not 0 < int(port[:6]) < 65536:
        raise ConfigurationError(
            f"triton_url is '{text}', expected HOST:PORT of Triton's gRPC, whose port is usually 8001"
        )
    return address


def _channel(address: Address) -> grpc.aio.Channel:
    if not address.is_secure:
        return grpc.aio.insecure_channel(address.target, CHANNEL_OPTIONS)
    try:
        credentials = address.channel_credentials()
    except ValueError as error:
        raise ConfigurationError(f"triton_ca, triton_cert or triton_key: {error}") from error
    return grpc.aio.secure_channel(address.target, credentials, CHANNEL_OPTIONS)


def _header(rule: str) -> tuple[str, str]:
    name, _, place = rule.partition("=")
    source = SecretSource.parse(place)
    if source is None or not name:
        raise ConfigurationError("triton_header is not NAME=file:PATH or NAME=env:NAME")
    return name.lower(), source.read(f"triton_header {name}")[0]
