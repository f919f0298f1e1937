"""What the choices of int8 cost and bring: the product's beside others, of one network, in turn.

Others are faster or smaller, and are not made by `stn export`, for the reasons that `export.quantization` gives.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import onnx
from onnxruntime.quantization import QuantFormat, quantize_static

from benchmarks.model_files import Subject
from benchmarks.model_times import session_program
from benchmarks.training_speed import time_rounds
from export.quantization import (
    OPTIONS,
    PASSED,
    QUANTIZED,
    Calibration,
    quantizable,
    quiet_quantizer,
    with_passed,
)

BATCH = 16
ROUNDS = 30
ENOUGH_S = 20.0
CALIBRATION_IMAGES = 32


class ChoiceTime(NamedTuple):
    """Milliseconds of a batch: median, and the middle 80 % of the rounds."""

    choice: str
    threads: int
    ms: float
    low_ms: float
    high_ms: float


def files(subject: Subject, folder: Path) -> dict[str, Path]:
    """A file for each choice; those that the folder has are taken as they are."""
    made = subject.files(folder)
    graph = onnx.load(made["fp32"]).graph
    layers = quantizable(graph)
    ours = with_passed(graph, layers)
    unseen = [name for name in layers if name not in _before_theta(graph)]
    every = [node.name for node in graph.node if node.op_type in (*QUANTIZED, *PASSED)]
    choices: dict[str, tuple[list[str], dict[str, Any]]] = {
        "one scale a tensor": (ours, {"per_channel": False}),
        "weights of eight bits": (ours, {"reduce_range": False}),
        "QOperator instead of QDQ": (ours, {"quant_format": QuantFormat.QOperator}),
        "what no transformer looks at": (with_passed(graph, unseen), {}),
        "localisation, too: everything": (every, {}),
    }
    found = {"float32": made["fp32"], "int8 of `stn export`": made["int8"]}
    for number, (choice, (nodes, changes)) in enumerate(choices.items()):
        found[choice] = folder / f"{subject.name}-choice{number}.onnx"
        if not found[choice].exists():
            images = Calibration(subject.images(CALIBRATION_IMAGES), "image")
            with quiet_quantizer():
                quantize_static(made["fp32"], found[choice], images, nodes_to_quantize=nodes, **(OPTIONS | changes))
    return found


def _before_theta(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes that a theta is computed from."""
    values = {"theta"}
    for node in reversed(graph.node):
        if values & set(node.output):
            values |= set(node.input)
    return {node.name for node in graph.node if values & set(node.output)}


def measure(subject: Subject, folder: Path, threads: int) -> list[ChoiceTime]:
    """All choices in turn."""
    images = subject.images(BATCH)
    programs = {choice: session_program(path, threads, images) for choice, path in files(subject, folder).items()}
    rows = []
    for choice, seconds in time_rounds(programs, ROUNDS, warm_up=1, enough_s=ENOUGH_S).items():
        low, *_, high = (round(1e3 * second, 2) for second in quantiles(seconds, n=10))
        rows.append(ChoiceTime(choice, threads, round(1e3 * median(seconds), 2), low, high))
    return rows
