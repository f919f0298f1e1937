"""A case: a request, and what Triton answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from targets import Refused, Target

Observe = Callable[[Target], Any]


@dataclass(frozen=True)
class Case:
    """What `observe` returns of Triton is `expected`; of our server too, but for a listed difference."""

    name: str
    observe: Observe
    expected: Any


def matches(observed: object, expected: object) -> bool:
    """Whether an answer is the expected one; of a refusal's message, the beginning counts."""
    if isinstance(expected, Refused) and isinstance(observed, Refused):
        return observed.status == expected.status and observed.message.startswith(expected.message)
    return bool(observed == expected)
