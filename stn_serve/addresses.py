"""Where a server is, and how a client proves itself to it."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict, Unpack

import grpc

FilePath = str | os.PathLike[str]


class ConnectionOptions(TypedDict, total=False):
    """Keywords of `Client` and `AsyncClient` for servers that ask for TLS or a token. Files are PEM."""

    ca: FilePath
    """Certificates to trust; the system's by default."""
    cert: FilePath
    """The client's own certificate, where the server wants one; with `key`."""
    key: FilePath
    token: str
    """Sent as `Authorization: Bearer TOKEN` with every request."""


@dataclass(frozen=True, slots=True)
class Address:
    """A server's address, taken apart."""

    text: str
    """As it was given: messages show it."""
    is_http: bool
    is_secure: bool
    target: str
    """`host:port` for gRPC, a URL without a path for HTTP."""
    options: ConnectionOptions

    @classmethod
    def parse(cls, text: str, **options: Unpack[ConnectionOptions]) -> Self:
        """`host:port` or `grpc://host:port`, `grpcs://host:port`, `http://host:port`, `https://host:port`.

        A plain `host:port` uses TLS where a file of it is given.

        Raises:
            ValueError: another kind of address, options that contradict it, or a file that cannot be read.
        """
        scheme, separator, rest = text.partition("://")
        if separator and scheme not in ("grpc", "grpcs", "http", "https"):
            raise ValueError(
                f"address {text!r}: expected host:port for gRPC, http://host:port for HTTP; "
                "with TLS grpcs://host:port or https://host:port"
            )
        has_files = any(options.get(name) for name in ("ca", "cert", "key"))
        is_secure = scheme in ("grpcs", "https") if separator else has_files
        if has_files and not is_secure:
            raise ValueError(f"address {text!r} is without TLS, but ca, cert or key is given: use {scheme}s://")
        if bool(options.get("cert")) != bool(options.get("key")):
            raise ValueError("cert and key belong together, but only one is given")
        if not options.get("token", "").isprintable() or not options.get("token", "").isascii():
            raise ValueError("the token holds characters that no header can carry")
        is_http = bool(separator) and scheme.startswith("http")
        target = text.rstrip("/") if is_http else rest if separator else text
        return cls(text.rstrip("/"), is_http, is_secure, target, options)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        token = self.options.get("token")
        return {"authorization": f"Bearer {token}"} if token else {}

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For gRPC with TLS."""
        options = self.options
        ca, cert, key = map(self._read, (options.get("ca"), options.get("cert"), options.get("key")))
        return grpc.ssl_channel_credentials(ca, key, cert)

    def ssl_context(self) -> ssl.SSLContext:
        """For HTTP; where there is no TLS one that trusts nobody, which takes no time to make."""
        if not self.is_secure:
            return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context = ssl.create_default_context(cafile=self.options.get("ca"))
            if cert := self.options.get("cert"):
                context.load_cert_chain(cert, self.options.get("key"))
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"the certificates of {self.text} cannot be used: {error}") from error
        return context

    def _read(self, path: FilePath | None) -> bytes | None:
        try:
            return Path(path).read_bytes() if path else None
        except OSError as error:
            raise ValueError(f"the certificates of {self.text} cannot be used: {error}") from error
