"""What stands between a server and its callers: certificates and tokens, as the settings say."""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import Self

from stn_serve.access import OPEN, Access
from stn_serve.certificates import Certificates
from stn_serve.settings import ServerSettings

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")


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

    def ssl_context(self, protocol: str = "http/1.1") -> ssl.SSLContext | None:
        """For servers of `http/1.1` or `h2`; None without TLS."""
        return self.certificates.context(protocol) if self.certificates else None

    def warn_of_strangers(self, host: str) -> None:
        """Where some calls want a token, name those that do not, if others than this machine can make them."""
        if self.access is not OPEN and self.access.open_groups and host not in LOOPBACK:
            groups = ", ".join(self.access.open_groups)
            logger.warning("no token protects the calls of %s: whoever reaches %s may make them", groups, host)

    async def watch(self) -> None:
        """Take new certificates and tokens when the files change, for ever."""
        files = [self.access.files, *([self.certificates.files] if self.certificates else [])]
        await asyncio.gather(*(live.watch() for live in files))
