"""Where the time of an exported network goes, by ONNX Runtime's profiler: its operators, and the transformers in it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import onnx
import onnxruntime as ort

from export.quantization import transformer_nodes


class NodeTime(NamedTuple):
    """One node of the graph as ONNX Runtime has optimised it."""

    operator: str
    ms: float
    """Of a run, median."""
    transforms: bool
    """Whether it belongs to a transformer: localisation, grid or sampling."""


def profile(path: Path, feed: Mapping[str, Any], threads: int, runs: int) -> list[NodeTime]:
    """Time every node of a file as it runs: optimised, with fused operators."""
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        ort.InferenceSession(path, _options(threads, optimised=optimised), providers=["CPUExecutionProvider"])
        model = onnx.load(optimised)
        for number, node in enumerate(model.graph.node):
            node.name = str(number)  # fused nodes have none, or somebody else's
        onnx.save(model, optimised)
        options = _options(threads, profile=Path(folder) / "profile")
        session = ort.InferenceSession(optimised, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: defaultdict[str, list[int]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    looking = transformer_nodes(model.graph)
    return [
        NodeTime(node.op_type, median(spent[node.name]) / 1e3, node.name in looking)
        for node in model.graph.node
        if node.name in spent
    ]


def transformer_percent(times: list[NodeTime]) -> float:
    """Of the time of all nodes."""
    return 100 * sum(node.ms for node in times if node.transforms) / sum(node.ms for node in times)


def by_operator(times: list[NodeTime]) -> list[tuple[str, float]]:
    """Milliseconds of each kind of operator, the largest first."""
    spent: defaultdict[str, float] = defaultdict(float)
    for node in times:
        spent[node.operator] += node.ms
    return sorted(spent.items(), key=lambda item: item[1], reverse=True)


def _options(threads: int, optimised: Path | None = None, profile: Path | None = None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimised:
        options.optimized_model_filepath = str(optimised)
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is optimised
    options.enable_profiling = profile is not None
    options.profile_file_prefix = str(profile)
    return options
