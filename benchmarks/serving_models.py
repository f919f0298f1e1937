"""The models that servers are measured with: those that are shipped, and house numbers at the paper's full size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers.workload import Workload

SHIPPED = Path(__file__).parents[1] / "model_repository"
FULL_SIZE = "house_numbers_full"
SIZE = 64


def _shipped(folder: Path, name: str) -> Workload:  # noqa: ARG001 - it lies elsewhere
    return Workload(name, SHIPPED / name)


def _full_size(folder: Path) -> Workload:
    """Untrained: what it computes is as much."""
    import torch

    from export.onnx_export import export_onnx
    from export.repository import draft
    from training.checkpoint import build_network
    from training.config import load_recipe
    from training.data.composed_numbers import LABELS

    torch.manual_seed(0)
    recipe = load_recipe("house_numbers_paper", ["model.head_std=0.01"])
    network = build_network(recipe, (3, SIZE, SIZE), len(LABELS)).eval()
    with draft(folder, FULL_SIZE) as drafted:
        contract = export_onnx(network, LABELS, drafted.version_directory / "model.onnx")
        drafted.configure(contract, None)
        published = drafted.publish()
    return Workload(FULL_SIZE, published.parent)


MODELS: dict[str, Callable[[Path], Workload]] = {
    "digits": partial(_shipped, name="digits"),
    "house_numbers": partial(_shipped, name="house_numbers"),
    FULL_SIZE: _full_size,
    "birds": partial(_shipped, name="birds"),
}
