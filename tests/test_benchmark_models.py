from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from benchmarks.model_files import named
from benchmarks.model_report import ENGINES, draw, render
from benchmarks.operators import by_operator, profile, transformer_percent
from export.onnx_export import export_onnx
from export.pixel_sampling import sample_by_pixel
from export.quantization import transformer_nodes
from training.checkpoint import build_network
from training.config import load_recipe

REPOSITORY = Path(__file__).parent.parent / "model_repository"
SMALL = ["model.transformers=multi", "model.width=0.05", "model.head_std=0.01"]


@pytest.fixture(scope="module")
def multi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow ST-CNN Multi: its transformers stand between its convolutions."""
    network = build_network(load_recipe("house_numbers_paper", SMALL), (3, 32, 32), 11).eval()
    path = tmp_path_factory.mktemp("models") / "multi.onnx"
    export_onnx(network, [str(label) for label in range(11)], path)
    return path


def weights_of(graph: onnx.GraphProto, names: set[str]) -> set[str]:
    """Modules whose weights the named nodes have."""
    constants = {tensor.name for tensor in graph.initializer if "." in tensor.name}
    used = {name for node in graph.node if node.name in names for name in node.input if name in constants}
    return {name.partition(".")[0] for name in used}


def test_what_belongs_to_transformers_is_what_the_network_says(multi: Path) -> None:
    graph = onnx.load(multi).graph
    looking = transformer_nodes(graph)
    assert weights_of(graph, looking) == {"placed"}
    assert weights_of(graph, {node.name for node in graph.node} - looking) == {"stages", "reader"}
    assert sum(node.op_type == "GridSample" for node in graph.node if node.name in looking) == 4


def test_what_samples_by_pixel_belongs_to_transformers_as_well(tmp_path: Path) -> None:
    wide = load_recipe("house_numbers_paper", [*SMALL, "model.width=0.35"])
    path = tmp_path / "wide.onnx"
    export_onnx(build_network(wide, (3, 32, 32), 11).eval(), [str(label) for label in range(11)], path)
    looked = transformer_nodes(onnx.load(path).graph)
    assert sample_by_pixel(path) == 3
    graph = onnx.load(path).graph
    looking = transformer_nodes(graph)
    assert weights_of(graph, looking) == {"placed"}
    assert weights_of(graph, {node.name for node in graph.node} - looking) == {"stages", "reader"}
    assert looked <= looking
    times = profile(path, {"image": np.zeros((1, 32, 32, 3), np.uint8)}, threads=1, runs=1)
    assert {"GridSample", "GatherND"} <= {node.operator for node in times if node.transforms}
    assert not {"Conv"} & {node.operator for node in times if node.transforms}


def test_a_cascade_that_samples_the_image_belongs_to_its_transformers_whole() -> None:
    graph = onnx.load(REPOSITORY / "house_numbers" / "1" / "model.onnx").graph
    looking = transformer_nodes(graph)
    assert weights_of(graph, looking) == {"cascade"}
    assert weights_of(graph, {node.name for node in graph.node} - looking) == {"reader"}


def test_a_network_without_transformers_has_no_share_of_them(tmp_path: Path) -> None:
    network = build_network(load_recipe("house_numbers_paper", [*SMALL, "model.transformers=none"]), (3, 32, 32), 11)
    export_onnx(network.eval(), [str(label) for label in range(11)], tmp_path / "cnn.onnx")
    assert transformer_nodes(onnx.load(tmp_path / "cnn.onnx").graph) == set()


def test_every_node_that_runs_is_timed(multi: Path) -> None:
    times = profile(multi, {"image": np.zeros((1, 32, 32, 3), np.uint8)}, threads=1, runs=2)
    operators = dict(by_operator(times))
    assert {"Conv", "GridSample"} <= operators.keys()
    assert sum(node.operator == "Conv" for node in times) == 8
    assert sum(operators.values()) == pytest.approx(sum(node.ms for node in times))
    assert 0 < transformer_percent(times) < 100


NEEDS_WEIGHTS = pytest.mark.skipif(
    "STN_DATA_DIR" not in os.environ, reason="birds begins with weights of others, which $STN_DATA_DIR does not have"
)


@pytest.mark.parametrize("name", ["digits", "house_numbers", pytest.param("birds", marks=NEEDS_WEIGHTS)])
def test_the_shipped_models_are_rebuilt_from_what_they_say_of_themselves(name: str) -> None:
    (subject,) = named([name])
    network = subject.network()
    assert network.input_size == subject.input_size
    assert subject.shipped
    weights = {tensor.name for tensor in onnx.load(subject.shipped).graph.initializer}
    assert weights & set(network.state_dict())


def test_models_that_there_are_not_are_refused() -> None:
    with pytest.raises(
        ValueError, match="cats is not known, expected some of birds, digits, house_numbers, paper_multi"
    ):
        named(["cats"])


def results() -> dict[str, Any]:
    made = {"date": "2026-11-25", "machine": "2 CPUs", "note": ""}
    ms = dict(zip(ENGINES, (10.0, 4.0, 20.0, 15.0), strict=True))
    times = [
        {
            "engine": engine,
            "threads": threads,
            "batch": 16,
            "ms": ms[engine],
            "low_ms": 1.0,
            "high_ms": 30.0,
            "rounds": 9,
        }
        for threads in (1, 2)
        for engine in ENGINES
    ]
    profiles = [
        {"precision": "fp32", "batch": 16, "transformer_percent": 12.5, "operators": [["Conv", 3.0], ["Add", 1.0]]}
    ]
    first = {engine: {"imports": 1.0, "loading": 0.25, "first_run": 0.5} for engine in ENGINES}
    row = {"network": "paper_multi", "grows": "size", "value": 32, "ms": 2.5, "low_ms": 2, "high_ms": 3, "megabytes": 9}
    more = row | {"network": "birds", "grows": "transformers"}
    title = {"title": "the paper's ST-CNN Multi"}
    return {
        "paper_multi": {**made, **title, "times": times, "profiles": profiles, "first": first},
        "growth": {**made, "threads": 2, "rows": [row, more]},
    }


def test_the_report_holds_what_was_measured(tmp_path: Path) -> None:
    text = render(results())
    assert "batch 16: 2.50 times on 1 thread, 2.50 times on 2 threads; 2 times are wanted: met." in text
    assert "| 16 | 10.0 (1.0 to 30.0) | 4.00 (1.00 to 30.00) | 20.0 (1.0 to 30.0) |" in text
    assert "| 2.50 | 2.00 | 1.50 |" in text
    assert "| fp32 | 16 | 12.5 % | Conv 75.0 %, Add 25.0 %, others 0.0 % |" in text
    assert "**1.75** = 1.00 + 0.25 + 0.50" in text
    assert "| 32 | 2.50 (2.00 to 3.00) | 9.0 |" in text
    draw(results(), tmp_path / "models.png")
    with Image.open(tmp_path / "models.png") as picture:
        assert picture.format == "PNG"
