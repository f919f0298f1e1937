"""Serve spatial transformer networks: what is it, and where did the model look?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stn_serve.async_client import AsyncClient
    from stn_serve.client import Client
    from stn_serve.prediction import Prediction, Transform

__all__ = ["AsyncClient", "Client", "Prediction", "Transform"]

_MODULES = {
    "AsyncClient": "stn_serve.async_client",
    "Client": "stn_serve.client",
    "Prediction": "stn_serve.prediction",
    "Transform": "stn_serve.prediction",
}


def __getattr__(name: str) -> object:
    """Import the client when it is asked for: a server does without it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
