"""Durations as people write them."""

from __future__ import annotations

import re

from stn_serve.errors import ConfigurationError

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS_S)})")


def parse_duration_s(name: str, text: str) -> float:
    """Seconds of a text such as `20ms`, `1.5s` or `500 us`.

    Raises:
        ConfigurationError: it is something else, or no time at all; `name` says what it was for.
    """
    match = _DURATION.fullmatch(text.strip())
    seconds = float(match[1]) * UNITS_S[match[2]] if match else 0.0
    if not seconds:
        *others, last = UNITS_S
        units = f"{', '.join(others)} or {last}"
        raise ConfigurationError(f"{name} is '{text}', expected a number above 0 with its unit ({units}), such as 20ms")
    return seconds
