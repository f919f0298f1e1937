"""What stands between a server and its callers: certificates and tokens, as the settings say."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import Self

from stn_serve.access import OPEN, Access
from stn_serve.certificates import Certificates
from stn_serve.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Guard:
    """The same for gRPC, HTTP and the metrics."""

    certificates: Certificates | None
    access: Access

    @classmethod
    def of(cls, settings: ServerSettings) -> Self:
        """Read what the settings name.

        Raises:
            ConfigurationError: a file cannot be read or used.
        """
        return cls(Certificates.of(settings), Access(settings.tokens) if settings.tokens else OPEN)

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """For HTTP servers; None without TLS."""
        return self.certificates.http_context() if self.certificates else None

    async def watch(self) -> None:
        """Take new certificates and tokens when the files change, for ever."""
        files = [self.access.files, *([self.certificates.files] if self.certificates else [])]
        await asyncio.gather(*(live.watch() for live in files))
