"""Which family a `[data]` or `[model]` of a recipe is of."""

from __future__ import annotations

from typing import Any


def family_of(fields: Any) -> Any:  # noqa: ANN401 - whatever a recipe holds
    """The field `family`, `digits` where it is left out."""
    if isinstance(fields, dict):
        return fields.get("family", "digits")
    return getattr(fields, "family", None)
