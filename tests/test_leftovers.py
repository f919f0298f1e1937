from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from onnx_models import publish_ident, publish_slow, publish_vision


def test_no_call_leaves_anything_to_the_garbage_collector(tmp_path: Path) -> None:
    """It stops the server, and what waits for it holds whole requests; so there must be nothing for it to find."""
    publish_ident(tmp_path)
    publish_vision(tmp_path)
    publish_slow(tmp_path, repeats=40)
    command = [sys.executable, str(Path(__file__).with_name("leftovers.py")), str(tmp_path)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    left = json.loads(result.stdout)
    assert len(left) > 10
    assert {way: objects for way, objects in left.items() if objects} == {}


def test_the_garbage_collector_looks_at_nothing_that_was_imported() -> None:
    probe = "import gc; from stn_serve.server import prepare_process; prepare_process(); print(len(gc.get_objects()))"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1000
