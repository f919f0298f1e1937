"""What tests need that pip does not bring."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

DEBIAN = {"prometheus": "prometheus", "promtool": "prometheus", "docker-compose": "docker-compose"}
"""Programs, and the packages of Debian that bring them; `.ci/install-tools` installs them."""


def program(name: str) -> str:
    """Where a program is."""
    found = shutil.which(name)
    if not found:
        missing(f"{name} is not installed: run .ci/install-tools, or apt-get install {DEBIAN[name]}")
    return found


def missing(reason: str) -> NoReturn:
    """Skip the test on a machine that cannot run it; CI must be able to, and fails."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
