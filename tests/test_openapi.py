from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import urllib3
from onnx_models import publish_ident, publish_vision
from served import Served, running

from stn_serve.compute import ComputePool
from stn_serve.control import Control
from stn_serve.http_api import HttpApi
from stn_serve.inference import Inference
from stn_serve.log_settings import LogSettings
from stn_serve.openapi import document, expand
from stn_serve.registry import ModelRegistry
from stn_serve.served_model import Shared
from stn_serve.shared_memory import SharedMemory
from stn_serve.vision import ImagePrediction

ROOT = Path(__file__).parents[1]
ONE_VERSION = ("--exclude-operation-id-regex", "_version$")


def test_the_document_that_is_checked_in_is_the_one_that_is_served(server: Served) -> None:
    served = urllib3.request("GET", f"http://{server.http}/openapi.json").json()
    assert served == document()
    assert json.loads((ROOT / "docs" / "openapi.json").read_text()) == served, "python -m stn_serve.openapi writes it"


def test_it_has_every_route_and_no_other() -> None:
    registry = ModelRegistry(ROOT, {}, Shared(ComputePool(1)))
    control = Control(registry, SharedMemory(), LogSettings())
    images = ImagePrediction(registry)
    routes = HttpApi(Inference(registry), control, images, 1).routes
    images.close()
    served = {(route.method, path) for route in routes for path in expand(route.path)}
    described = {(method.upper(), path) for path, methods in document()["paths"].items() for method in methods}
    assert described == served


def test_every_reference_leads_somewhere_and_every_operation_has_its_own_name() -> None:
    text = json.dumps(document())
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert references <= set(document()["components"]["schemas"])
    names = re.findall(r'"operationId": "(\w+)"', text)
    assert len(names) == len(set(names))


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    publish_vision(tmp_path)
    with running(tmp_path, "--model-control-mode", "explicit", "--load-model", "*", "--allow-shared-memory") as served:
        schemathesis = Path(sys.executable).with_name("schemathesis")
        config = ("--config-file", str(ROOT / "tests" / "schemathesis.toml"))
        # Paths with a version are the same operations; the file above says how to run everything.
        extent = ("--phases", "fuzzing", "--max-examples", "6", "--seed", "1", "--no-color")
        command = (str(schemathesis), *config, "run", f"http://{served.http}/openapi.json", *extent, *ONE_VERSION)
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert urllib3.request("GET", f"http://{served.http}/v2/health/ready").status == 200
    assert result.returncode == 0, result.stdout
