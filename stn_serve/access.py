"""Who may call what: bearer tokens by API group.

A rule such as `inference,metadata=file:/run/secrets/clients` opens groups to the tokens of a source. A group that no
rule names is open to everybody. Of a token only its hash is kept, and hashes are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from stn_serve.errors import ConfigurationError, PermissionDenied, Unauthenticated
from stn_serve.live_files import LiveFiles
from stn_serve.secret_source import SecretSource

GROUPS = (
    "health",
    "metadata",
    "inference",
    "model-config",
    "model-repository",
    "shared-memory",
    "statistics",
    "trace",
    "logging",
    "metrics",
)
"""Triton's groups of its protocol, and the metrics."""
ALL = "all"
"""Stands for every group."""


class Rule(NamedTuple):
    """Groups, and where their tokens are."""

    groups: tuple[str, ...]
    source: SecretSource

    @classmethod
    def parse(cls, text: str) -> Rule:
        """`GROUP[,GROUP...]=file:PATH` or `...=env:NAME`.

        Raises:
            ConfigurationError: it is something else; a rule never holds a token, so it may be shown.
        """
        names, _, place = text.partition("=")
        source = SecretSource.parse(place)
        if source is None:
            raise ConfigurationError("a rule of tokens is not GROUP[,GROUP...]=file:PATH or GROUP[,GROUP...]=env:NAME")
        groups = tuple(names.split(","))
        for group in groups:
            if group not in (*GROUPS, ALL):
                raise ConfigurationError(f"tokens: there is no group '{group}', expected {', '.join(GROUPS)} or {ALL}")
        return cls(GROUPS if ALL in groups else groups, source)

    def tokens(self) -> list[str]:
        """What the source holds now.

        Raises:
            ConfigurationError: it cannot be read, is empty, or holds what no header can carry.
        """
        return self.source.read(f"tokens for {','.join(self.groups)}")


def token_for(rules: Sequence[str], group: str) -> str:
    """A token that the rules accept for a group, for who has the server's own settings; empty where none is needed.

    Raises:
        ConfigurationError: a rule or its source cannot be used.
    """
    for rule in map(Rule.parse, rules):
        if group in rule.groups:
            return rule.tokens()[0]
    return ""


class Access:
    """Decides for every call."""

    def __init__(self, rules: Sequence[str] = ()) -> None:
        """Read the tokens.

        Raises:
            ConfigurationError: a rule or its source cannot be used.
        """
        self._rules = [Rule.parse(rule) for rule in rules]
        self._known: dict[str, frozenset[bytes]] = {}
        paths = [Path(rule.source.place) for rule in self._rules if rule.source.kind == "file"]
        self.files = LiveFiles("the tokens", paths, self._load)

    @property
    def open_groups(self) -> list[str]:
        """The groups that everybody may call."""
        return [group for group in GROUPS if group not in self._known]

    def check(self, group: str, authorization: str) -> None:
        """Let a call pass; `authorization` is its header, empty where it has none.

        Raises:
            Unauthenticated: the group wants a token, and there is none or an unknown one.
            PermissionDenied: the token is for other groups.
        """
        if group not in self._known:
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(f"calls of the group '{group}' need a token: send 'Authorization: Bearer TOKEN'")
        shown = _hash(token.strip())
        if _holds(self._known[group], shown):
            return
        if any(_holds(known, shown) for known in self._known.values()):
            raise PermissionDenied(f"the token is not for calls of the group '{group}'")
        raise Unauthenticated("the token is not known")

    def _load(self) -> None:
        known: dict[str, set[bytes]] = {}
        for rule in self._rules:
            hashes = [_hash(token) for token in rule.tokens()]
            for group in rule.groups:
                known.setdefault(group, set()).update(hashes)
        self._known = {group: frozenset(hashes) for group, hashes in known.items()}


OPEN = Access()
"""Everybody may call everything."""


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _holds(known: Collection[bytes], shown: bytes) -> bool:
    """Compared with all, however early one fits."""
    return sum(hmac.compare_digest(shown, one) for one in known) > 0
