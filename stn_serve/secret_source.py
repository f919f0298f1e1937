"""Where secrets are. Settings name the place and never hold the secret itself, so that they may be shown and logged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from stn_serve.errors import ConfigurationError


class SecretSource(NamedTuple):
    """A file, with a secret on each line, or an environment variable that holds one."""

    kind: str
    """`file` or `env`."""
    place: str

    @classmethod
    def parse(cls, text: str) -> SecretSource | None:
        """`file:PATH` or `env:NAME`; None for something else, which may be a secret by mistake."""
        kind, _, place = text.partition(":")
        return cls(kind, place) if kind in ("file", "env") and place else None

    def read(self, purpose: str) -> list[str]:
        """What is there now, without empty lines and comments.

        Raises:
            ConfigurationError: it cannot be read, is empty, or holds what no header can carry.
        """
        where = f"{purpose}: {self.kind}:{self.place}"
        try:
            text = os.environ.get(self.place, "") if self.kind == "env" else Path(self.place).read_text("ascii")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise ConfigurationError(f"{where} cannot be read: {reason}") from error
        secrets = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        if not secrets:
            raise ConfigurationError(f"{where} holds no token")
        if not all(secret.isascii() and secret.isprintable() and " " not in secret for secret in secrets):
            raise ConfigurationError(f"{where} holds a token with spaces or characters that no header can carry")
        return secrets
