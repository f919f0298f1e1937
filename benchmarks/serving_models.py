"""The models that servers are measured with: those that are shipped, and house numbers at the paper's full size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.peers.workload import Workload

SHIPPED = Path(__file__).parents[1] / "model_repository"
FULL_SIZE = "house_numbers_full"


def _shipped(folder: Path, name: str) -> Workload:  # noqa: ARG001 - it lies elsewhere
    return Workload(name, SHIPPED / name)


def _full_size(folder: Path) -> Workload:
    """Untrained: what it computes is as much."""
    from benchmarks.model_files import paper
    from export.onnx_export import export_onnx
    from export.pixel_sampling import sample_by_pixel
    from export.repository import draft

    multi = paper()["multi"]
    with draft(folder, FULL_SIZE) as drafted:
        file = drafted.version_directory / "model.onnx"
        contract = export_onnx(multi.network(), multi.labels, file)
        sample_by_pixel(file)
        drafted.configure(contract, multi.max_batch_size)
        published = drafted.publish()
    return Workload(FULL_SIZE, published.parent)


MODELS: dict[str, Callable[[Path], Workload]] = {
    "digits": partial(_shipped, name="digits"),
    "house_numbers": partial(_shipped, name="house_numbers"),
    FULL_SIZE: _full_size,
    "birds": partial(_shipped, name="birds"),
}
