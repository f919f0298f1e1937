"""What it costs to look at photos of 448 px: everywhere, or cheaply first and closely where it matters.

Each network is exported and run by ONNX Runtime on one thread in a process of its own. What is measured is CPU time,
which other work on the machine does not lengthen, and the largest memory of the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from export.onnx_export import export_onnx
from training.config import load_recipe
from training.models.building import build

COST = "birds_cost.md"
SIZE = 448
WAYS: dict[str, tuple[str, list[str]]] = {
    "plain network, photo reduced to 160 px": ("birds_cnn", ["data.size=160"]),
    "plain network on all of 448 px": ("birds_cnn", ["data.size=448", "model.crop_size=448"]),
    "2xST-CNN on 448 px": ("birds_2x", []),
    "4xST-CNN on 448 px": ("birds_4x", []),
}
INTRODUCTION = """
## What looking at 448 px costs

`python -m benchmarks.birds --report --cost`, {date}, ONNX Runtime in fp32 on one thread of a CPU. CPU time of a photo,
median of nine; memory of the whole process. The transformers' networks hold everything: localisation on a copy reduced
to 224 px, sampling from 448 px, and the backbone on every crop of 160 px.
"""
RUN = """
import json, sys, time
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
size, batch = int(sys.argv[2]), int(sys.argv[3])
image = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
session.run(None, {"image": image})
times = []
for _ in range(9):
    started = time.process_time()
    session.run(None, {"image": image})
    times.append((time.process_time() - started) / batch)
# Not getrusage's, which a process inherits from the one that started it.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"cpu_ms": 1000 * sorted(times)[4], "peak_mib": peak / 1024}))
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one way to look."""

    way: str
    multiply_adds: int
    """For one photo."""
    cpu_ms: float
    """For one photo alone."""
    batch_cpu_ms: float
    """For each of eight photos."""
    batch_peak_mib: float
    """Memory of a process that does nothing else, with batches of eight."""


def measure_costs() -> list[Cost]:
    """Of every way, on freshly initialised networks: costs do not depend on weights."""
    return [_measure(way, name, settings) for way, (name, settings) in WAYS.items()]


def _measure(way: str, name: str, settings: list[str]) -> Cost:
    recipe = load_recipe(name, settings)
    size = recipe.data.size  # type: ignore[union-attr]  # birds have one
    network = build(recipe.model, (3, size, size), 50).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, size, size))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network, [str(label) for label in range(50)], path)
        alone, eight = (_run(path, size, batch) for batch in (1, 8))
    return Cost(
        way=way,
        multiply_adds=counter.get_total_flops() // 2,
        cpu_ms=round(alone["cpu_ms"], 1),
        batch_cpu_ms=round(eight["cpu_ms"], 1),
        batch_peak_mib=round(eight["peak_mib"]),
    )


def _run(path: Path, size: int, batch: int) -> dict[str, float]:
    command = [sys.executable, "-c", RUN, str(path), str(size), str(batch)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return result


def write_costs(costs: list[Cost], path: Path) -> None:
    """As a section of the report, and as JSON beside it."""
    path.with_suffix(".json").write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")
    lines = [
        INTRODUCTION.format(date=datetime.now(UTC).date().isoformat()),
        "| | multiply-adds, millions | ms, alone | ms, in eights | images/s, in eights | peak memory, MiB |",
        "|---|---|---|---|---|---|",
        *(
            f"| {cost.way} | {cost.multiply_adds / 1e6:,.0f} | {cost.cpu_ms} | {cost.batch_cpu_ms} | "
            f"{1000 / cost.batch_cpu_ms:.0f} | {cost.batch_peak_mib} |"
            for cost in costs
        ),
    ]
    path.write_text("\n".join(lines) + "\n")
