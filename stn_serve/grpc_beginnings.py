"""What the first bytes of a message of inference say: which model it is for."""

from __future__ import annotations

NAME, VERSION = 1 << 3 | 2, 2 << 3 | 2
"""How fields 1 and 2 begin that have a length, in `ModelInferRequest` and in `PredictRequest`."""
MAX_TEXT_BYTES = 127
"""Whose length is one byte."""
BEGINNING_BYTES = 2 * (2 + MAX_TEXT_BYTES)
"""As many hold both."""


def model_of(beginning: bytes) -> tuple[str, str] | None:
    """The name and the version, or an empty one, at the begin of a message; None where there is no name.

    All that write protobuf write fields by their numbers, though they need not: what is not found here, because it
    comes later or is longer than `MAX_TEXT_BYTES`, is found when the whole message is read.
    """
    texts, rest = [], beginning
    for field in (NAME, VERSION):
        length = 0
        if len(rest) > 1 and rest[0] == field:
            length = rest[1]
            if length > MAX_TEXT_BYTES or len(rest) < 2 + length:
                return None
            rest = rest[2:]
        texts.append(rest[:length])
        rest = rest[length:]
    try:
        name, version = (text.decode() for text in texts)
    except UnicodeDecodeError:
        return None
    return (name, version) if name else None
