from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc.service_pb2 import ModelInferResponse

from benchmarks import h2load, perf_analyzer
from benchmarks.memory import proportional_mib
from benchmarks.peers import open_inference
from benchmarks.peers.all import PEERS
from benchmarks.peers.peer import BARE, JPEG_GRPC, RAW_HTTP, TENSOR_GRPC
from benchmarks.peers.workload import Workload
from benchmarks.serving import select
from benchmarks.serving_plot import plot
from benchmarks.serving_results import Cell, Figure, Results, Round
from benchmarks.serving_table import render
from stn_serve.machine import cpu_seconds, process_tree

DIGITS = Path(__file__).parents[1] / "model_repository" / "digits"

# As perf_analyzer 2.51 writes it.
REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
16,2214.05,31,2412,2511,63,2203,11,2,7045,9400,10311,12760
"""


def test_perf_analyzers_report_is_read() -> None:
    load = perf_analyzer.parse(REPORT)
    assert load == (2214.05, 7.045, 12.76)


def test_h2loads_log_is_read() -> None:
    log = "".join(f"{start}\t200\t{micros}\n" for start, micros in ((0, 1000), (1000, 3000), (4000, 1000)))
    load = h2load.parse(log + "5000\t-1\t10\n", concurrency=1)
    assert load.throughput == pytest.approx(3 / 5e-3)
    assert load.p50_ms == 1


@pytest.mark.parametrize("log", ["", "0\t503\t10\n", "0\t200\t10\n0\t-1\t10\n1\t-1\t10\n"])
def test_requests_that_fail_are_no_measurement(log: str) -> None:
    with pytest.raises(RuntimeError, match="h2load"):
        h2load.parse(log, concurrency=1)


def test_answers_of_the_open_inference_protocol_are_read() -> None:
    workload = Workload("digits", DIGITS)
    calls = open_inference.binary_calls("127.0.0.1:1", "127.0.0.1:2", workload)
    logits = np.arange(10, dtype=np.float32)
    response = ModelInferResponse(raw_output_contents=[bytes(24), logits.tobytes()])
    response.outputs.add(name="theta")
    response.outputs.add(name="logits")
    header = (
        b'{"outputs":[{"name":"theta","parameters":{"binary_data_size":24}},'
        b'{"name":"logits","parameters":{"binary_data_size":40}}]}'
    )
    answers = (response.SerializeToString(), header + bytes(24) + logits.tobytes())
    for call, answer in zip(calls.values(), answers, strict=True):
        assert call.read_logits
        assert np.array_equal(call.read_logits(answer), logits)


def results() -> Results:
    """Two servers, and the limit."""
    found = Results(runs=[{"command": "this", "date": "2026-11-25", "commit": "abc", "hardware": "2 CPUs"}])
    for throughput in (1000.0, 1200.0, 1100.0):
        one = Round(throughput=throughput, p50_ms=1.5, p99_ms=3.25, cpu_ms=0.5, memory_mb=100)
        found.add(Cell("digits", TENSOR_GRPC, 16, "stn"), one)
        found.add(Cell("digits", TENSOR_GRPC, 16, "triton"), one)
        found.add(Cell("digits", BARE, 16, "bare"), one)
    found.failures[Cell("digits", RAW_HTTP, 16, "ray")] = "it fell over"
    found.missing["mlserver"] = "pip cannot install it"
    return found


def test_results_are_kept_and_the_median_and_spread_are_told(tmp_path: Path) -> None:
    file = tmp_path / "serving.json"
    results().save(file)
    again = Results.load(file)
    assert again == results()
    assert again.figure(Cell("digits", TENSOR_GRPC, 16, "stn"), "throughput") == Figure(1100, 1000, 1200)
    again.forget([Cell("digits", TENSOR_GRPC, 16, "stn")])
    assert again.count(Cell("digits", TENSOR_GRPC, 16, "stn")) == 0


def test_the_table_holds_every_server_and_what_was_not_measured() -> None:
    text = render(results())
    section = text.partition("## digits: tensor over gRPC, perf_analyzer")[2].partition("##")[0]
    assert "| digits | tensor over gRPC, perf_analyzer | 1100 | 1100 | 1100 |" in text
    for name in ("stn", "triton", "bare"):
        assert f"| 16 | {PEERS[name].title} | 1100 (1000-1200) | 1.5 (1.5-1.5) | 3.25 (3.25-3.25) |" in section
    assert "MLServer 1.7.1: pip cannot install it" in text
    assert "Ray Serve 2.60, digits, tensor http h2load, 16 at once: it fell over" in text


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(results(), tmp_path / "serving.png")
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


def test_ways_are_chosen_by_their_words() -> None:
    cells = select(["digits"], list(PEERS), ["tensor-grpc", "jpeg-grpc"], [1])
    ways = {cell.way for cell in cells}
    assert TENSOR_GRPC in ways
    assert JPEG_GRPC in ways
    assert RAW_HTTP not in ways
    assert {cell.server for cell in cells if cell.way == BARE} == {"bare"}


def test_a_process_is_counted_with_its_descendants() -> None:
    busy = "import os; [None for _ in range(10**6)]; print('done', flush=True); input()"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        family = list(process_tree(process.pid))
        assert family[0] == process.pid
        assert len(family) == 2
        assert cpu_seconds(process.pid) > 0
        assert proportional_mib(process.pid) > 1
        process.communicate("\n")


@pytest.mark.parametrize("arguments", [["--model", "cats"], ["--server", "apache"], ["--perf-analyzer", "nowhere"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2
    assert arguments[-1] in done.stderr
