"""Where an exported model comes from: `provenance.json`."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("stn-serve", "torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime")


def provenance(origin: Mapping[str, Any], export: Mapping[str, Any], model: Path) -> str:
    """The document: where the network comes from, how it was exported, commit, versions, date, and the file's hash."""
    fields = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **origin,
        "export": dict(export),
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "commit": _commit(Path(__file__)),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }
    return json.dumps(fields, indent=2) + "\n"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(source: Path) -> str | None:
    """The commit of the code that exports, `-dirty` where it was changed since; None outside a checkout of it."""
    if _git(source.parent, "ls-files", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, prints nothing, or is not installed."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip() or None
