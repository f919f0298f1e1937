"""What the first bytes of a message of inference say: which model it is for."""

from __future__ import annotations

from typing import NamedTuple

NAME, VERSION, ID = (bytes((number << 3 | 2,)) for number in (1, 2, 3))
"""How these fields of `ModelInferRequest` and `PredictRequest` begin: with a number, and that they have a length."""
MAX_TEXT_BYTES = 127
"""Whose length is one byte."""
BEGINNING_BYTES = 3 * (2 + MAX_TEXT_BYTES)
"""As many hold all three."""


class Beginning(NamedTuple):
    """Texts that are not there, or are longer than `MAX_TEXT_BYTES`, are empty."""

    model: str
    version: str
    id: str


def read_beginning(data: bytes) -> Beginning | None:
    """What a message says of itself; None where it does not say which model it asks for.

    All that write protobuf write fields by their numbers, though they need not: what comes later is found when the
    whole message is read.
    """
    name, rest = _text(data, NAME)
    version, rest = _text(rest, VERSION)
    request_id, _ = _text(rest, ID)
    if not name or rest.startswith(VERSION):
        return None
    try:
        return Beginning(name.decode(), version.decode(), request_id.decode())
    except UnicodeDecodeError:
        return None


def _text(data: bytes, field: bytes) -> tuple[bytes, bytes]:
    """A field at the begin of `data`, and what follows; empty where it is another one, is too long or not whole."""
    if not data.startswith(field) or len(data) < 2 or data[1] > MAX_TEXT_BYTES or len(data) < 2 + data[1]:
        return b"", data
    end = 2 + data[1]
    return data[2:end], data[end:]
