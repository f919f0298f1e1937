"""TLS for gRPC and HTTP from the same files, exchanged for new connections when the files change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NoReturn, Self

import grpc

from stn_serve.errors import ConfigurationError
from stn_serve.live_files import LiveFiles
from stn_serve.settings import ServerSettings


class Certificates:
    """The server's certificate, its key, and the authorities that its clients must be known to (mutual TLS)."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Read them.

        Raises:
            ConfigurationError: a file cannot be read, is no PEM, or they do not belong together.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._context: ssl.SSLContext
        self._configuration: grpc.ServerCertificateConfiguration
        self._is_new = False
        self.files = LiveFiles("the certificates", [path for path in (cert, key, client_ca) if path], self._load)

    @classmethod
    def of(cls, settings: ServerSettings) -> Self | None:
        """As the settings say; None without TLS."""
        if not (settings.tls_cert and settings.tls_key):
            return None
        return cls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For one gRPC server, which asks at each handshake whether there is something new."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._take_new,  # type: ignore[arg-type]  # its stub forgets that None stands for nothing new
            require_client_authentication=self._client_ca is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """For HTTP servers; it follows the files."""
        return _Latest(self)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 - ssl's own signature
        """One connection's side of TLS, with the certificates of now."""
        return self._context.wrap_bio(*args, **kwargs)

    def _take_new(self) -> grpc.ServerCertificateConfiguration | None:
        is_new, self._is_new = self._is_new, False
        return self._configuration if is_new else None

    def _load(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        cert, key = _read(self._cert), _read(self._key)
        client_ca = _read(self._client_ca) if self._client_ca else None
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
        self._context = context
        self._configuration = grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)
        self._is_new = True

    def _refuse_password(self) -> NoReturn:
        # OpenSSL would ask on the terminal, where nobody is.
        raise ConfigurationError(f"tls_key {self._key} is encrypted: decrypt it, and guard it by its permissions")


class _Latest(ssl.SSLContext):
    """A context that event loops accept, and that makes each connection from the newest certificates."""

    def __new__(cls, _: Certificates) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:  # noqa: ANN401 - ssl's own signature
        return self._certificates.wrap_bio(*args, **kwargs)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"certificate file {path} cannot be read: {error.strerror}") from error
