from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import urllib3
from onnx_models import publish_ident
from served import Served, running
from tritonclient.utils import InferenceServerException


def scrape(served: Served) -> str:
    response = urllib3.request("GET", f"http://{served.metrics}/metrics")
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    return response.data.decode()


def values(text: str) -> dict[str, float]:
    """By name, and the reason of a failure behind it; of a server with one model."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            reason = re.search(r'reason="(\w+)"', name)
            found[name.partition("{")[0] + (reason.group(1) if reason else "")] = float(value)
    return found


def ask(client: tritonclient.grpc.InferenceServerClient, rows: int) -> None:
    image = tritonclient.grpc.InferInput("image", [rows, 1, 28, 28], "FP32")
    image.set_data_from_numpy(np.zeros((rows, 1, 28, 28), np.float32))
    client.infer("ident", [image])


def test_metrics_count_what_the_client_counted(tmp_path: Path) -> None:
    publish_ident(tmp_path)
    with running(tmp_path) as served, tritonclient.grpc.InferenceServerClient(served.grpc) as client:
        for rows in (1, 2, 3):
            ask(client, rows)
        with pytest.raises(InferenceServerException):
            ask(client, 9)
        text = scrape(served)
        found = values(text)
    assert found["nv_inference_request_success"] == 3
    assert found["nv_inference_count"] == 6
    assert found["nv_inference_exec_count"] == 3
    assert found["nv_inference_pending_request_count"] == 0
    assert found["nv_inference_request_failureOTHER"] == 1
    assert [found[f"nv_inference_request_failure{reason}"] for reason in ("REJECTED", "CANCELED", "BACKEND")] == [0] * 3
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert sum(found[f"nv_inference_{part}_duration_us"] for part in parts) <= found["nv_inference_request_duration_us"]
    assert found["nv_model_load_duration_secs"] > 0
    assert found["process_resident_memory_bytes"] > 0


def test_what_cannot_be_loaded_is_counted(server: Served) -> None:
    lines = scrape(server).splitlines()
    assert 'stn_model_load_failed{model="broken",version=""} 1' in lines
    assert 'stn_model_load_failed{model="ident",version="1"} 0' in lines


def test_lines_are_tritons(server: Served) -> None:
    lines = scrape(server).splitlines()
    position = lines.index("# TYPE nv_inference_request_success counter")
    assert (
        lines[position - 1]
        == "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes"
    )
    assert lines[position + 1].startswith('nv_inference_request_success{model="ident",version="1"} ')
    assert any(
        line.startswith('nv_inference_request_failure{model="ident",reason="REJECTED",version="1"} ') for line in lines
    )
    assert "# TYPE nv_inference_pending_request_count gauge" in lines


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/metrics", 405), ("GET", "/", 404), ("HEAD", "/metrics", 405)]
)
def test_the_port_serves_nothing_else(server: Served, method: str, path: str, status: int) -> None:
    assert urllib3.request(method, f"http://{server.metrics}{path}", retries=False).status == status
