"""TLS for gRPC and HTTP from the same files, exchanged for new connections when the files change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NoReturn, Self

from stn_serve.errors import ConfigurationError
from stn_serve.live_files import LiveFiles
from stn_serve.settings import ServerSettings

PROTOCOLS = ("http/1.1", "h2")
"""As ALPN calls them."""


class Certificates:
    """The server's certificate, its key, and the authorities that its clients must be known to (mutual TLS)."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Read them.

        Raises:
            ConfigurationError: a file cannot be read, is no PEM, or they do not belong together.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.files = LiveFiles("the certificates", [path for path in (cert, key, client_ca) if path], self._load)

    @classmethod
    def of(cls, settings: ServerSettings) -> Self | None:
        """As the settings say; None without TLS."""
        if not (settings.tls_cert and settings.tls_key):
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def context(self, protocol: str) -> ssl.SSLContext:
        """For servers of `http/1.1` or `h2`; it follows the files."""
        return _Latest(self, protocol)

    def wrap_bio(self, protocol: str, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 - ssl's own signature
        """One connection's side of TLS, with the certificates of now."""
        return self._contexts[protocol].wrap_bio(*args, **kwargs)

    def _load(self) -> None:
        self._contexts = {protocol: self._read(protocol) for protocol in PROTOCOLS}

    def _read(self, protocol: str) -> ssl.SSLContext:
        for path in (self._cert, self._key, self._client_ca):
            if path:
                _check_readable(path)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols([protocol])
        try:
            context.load_cert_chain(self._cert, self._key, password=self._refuse_password)
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"tls_cert {self._cert} and tls_key {self._key} are not a PEM certificate and its key: {error}"
            ) from error
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except ssl.SSLError as error:
                raise ConfigurationError(
                    f"tls_client_ca {self._client_ca} holds no PEM certificate: {error}"
                ) from error
        return context

    def _refuse_password(self) -> NoReturn:
        # OpenSSL would ask on the terminal, where nobody is.
        raise ConfigurationError(f"tls_key {self._key} is encrypted: decrypt it, and guard it by its permissions")


class _Latest(ssl.SSLContext):
    """A context that event loops accept, and that makes each connection from the newest certificates."""

    def __new__(cls, *_: object) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificates: Certificates, protocol: str) -> None:
        self._certificates, self._protocol = certificates, protocol

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 - ssl's own signature
        return self._certificates.wrap_bio(self._protocol, *args, **kwargs)


def _check_readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"certificate file {path} cannot be read: {error.strerror}") from error
