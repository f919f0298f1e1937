"""JSON to and from the other Python servers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.workload import Workload

JSON = {"content-type": "application/json"}


def body(document: object) -> bytes:
    """Without spaces."""
    return json.dumps(document, separators=(",", ":")).encode()


def base64_image(workload: Workload) -> str:
    """The tensor's bytes, as JSON holds them with the least to parse."""
    return base64.b64encode(workload.image.tobytes()).decode()


def logits(answer: bytes) -> NDArray[Any]:
    """Of the object that our apps answer with, or of a list of one."""
    document = json.loads(answer)
    return np.asarray((document[0] if isinstance(document, list) else document)["logits"])


def tensor_logits(answer: bytes) -> NDArray[Any]:
    """Of the Open Inference Protocol's."""
    outputs = {output["name"]: output["data"] for output in json.loads(answer)["outputs"]}
    return np.asarray(outputs["logits"])
