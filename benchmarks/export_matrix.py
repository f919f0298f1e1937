"""Every kind of transform with every kernel, padding and precision: exported, and held against PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from export.onnx_export import export_onnx
from export.parity import TOLERANCES, ParityReport, Precision, measure_parity
from export.parity_cases import Entry, Images
from export.quantization import quantize
from export.repository import draft
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import (
    Affine,
    Affine3d,
    Attention,
    FullyConnectedLocalization,
    Projective,
    Sampler,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Transform,
    Translation,
)
from training.stn.sampler import Mode, Padding

SIDE, SAMPLED = 20, 12
LABELS = ("ant", "bee", "cat")
MAX_BATCH = 7
SIZE = (SAMPLED, SAMPLED)

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "translation": lambda: Translation(SIZE, scale=0.6),
    "attention": lambda: Attention(SIZE),
    "similarity": lambda: Similarity(SIZE),
    "affine": lambda: Affine(SIZE),
    "projective": lambda: Projective(SIZE, bounded=True),
    "thin plate spline": lambda: ThinPlateSpline(SIZE),
    "affine, volumes": lambda: Affine3d((4, *SIZE)),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""That change how a sampler computes; `fp16-weights` only rounds what it is given."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, and how far each precision is from PyTorch."""

    kind: str
    mode: Mode
    padding: Padding
    reports: dict[Precision, ParityReport]


class MatrixNetwork(Network):
    """A transformer on the image (repeated in depth for volumes), a convolution and a linear layer."""

    input_size = (1, SIDE, SIDE)

    def __init__(self, transform: Transform, sampler: Sampler) -> None:
        super().__init__()
        torch.manual_seed(0)
        localization = nn.Sequential(nn.AdaptiveAvgPool2d(4), FullyConnectedLocalization((1, 4, 4), (8,)))
        self.transformer = SpatialTransformer(localization, transform, sampler, features=8, head_std=0.05)
        self.depth = transform.output_size[0] if transform.dimensions == 3 else 1
        self.tail = nn.Sequential(nn.Conv2d(self.depth, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(8 * 25, len(LABELS))
        self.eval()

    def forward(self, images: Tensor) -> Answer:
        """Logits `[N, 3]` and theta `[N, 1, ...]`."""
        maps = images.unsqueeze(2).repeat(1, 1, self.depth, 1, 1) if self.depth > 1 else images
        warped, theta = self.transformer(maps, context=images)
        return Answer(self.classifier(self.tail(warped.reshape(-1, self.depth, *SIZE))), theta.unsqueeze(1))

    def transformers(self) -> list[PlacedTransformer]:
        """The one in front."""
        return [PlacedTransformer("transformer", "image", self.transformer)]


def combinations() -> list[tuple[str, Mode, Padding]]:
    """All but bicubic volumes, which neither PyTorch nor ONNX has."""
    every = product(TRANSFORMS, get_args(Mode), get_args(Padding))
    return [found for found in every if found[:2] != ("affine, volumes", "bicubic")]


def measure_cells(chosen: list[tuple[str, Mode, Padding]]) -> Iterator[Cell]:
    """Export each combination in every precision, and compare it with PyTorch."""
    for kind, mode, padding in track(chosen, "Networks"):
        fill = 0.5 if padding == "fill" else 0.0
        network = MatrixNetwork(TRANSFORMS[kind](), Sampler(mode, padding, fill=fill))
        yield Cell(kind, mode, padding, measure_precisions(network))


def measure_precisions(network: Network) -> dict[Precision, ParityReport]:
    """How far each precision of one network is from PyTorch, at batches of 1, 2 and 7."""
    images = np.random.default_rng(0).integers(0, 256, (32, SIDE, SIDE, 1), np.uint8)
    with tempfile.TemporaryDirectory() as repository, draft(Path(repository), "network") as entry:
        files = Path(repository) / "fp32.onnx", Path(repository) / "fp16.onnx", Path(repository) / "int8.onnx"
        contract = export_onnx(network, LABELS, files[0])
        export_onnx(network, LABELS, files[1], half=True)
        quantize(files[0], files[2], images, judge=lambda _: 100.0, allowed_points=0)
        place = Entry(entry.directory, entry.version, entry.configure(contract, MAX_BATCH))
        return {
            precision: _parity(network, place, file, images, precision)
            for precision, file in zip(PRECISIONS, files, strict=True)
        }


def _parity(network: Network, place: Entry, file: Path, images: Images, precision: Precision) -> ParityReport:
    place.file.write_bytes(file.read_bytes())
    return measure_parity(network, place.directory, place.version, place.config, images, precision)


def render(cells: list[Cell]) -> str:
    """The table, in Markdown."""
    limits = ", ".join(f"{name} {tolerance.error:g}" for name, tolerance in TOLERANCES.items())
    precisions = PRECISIONS
    lines = [
        "# Every transform, kernel, padding and precision against PyTorch",
        "",
        (
            f"Made by `python -m benchmarks.export --matrix`. Each of {len(cells)} small networks (a transformer, a "
            "convolution, a linear layer) is exported in each precision and compared with PyTorch in fp32, through the "
            "code that serves, in ONNX Runtime on the CPU, at batches of 1, 2 and 7: on images, on noise, with theta "
            "forced to a shift of nearly half a pixel, far outside, out of range (up to 1e30) and not finite."
        ),
        "",
        (
            "A number is the largest error of any logit in any of these checks, as a share of the largest logit (or of "
            f"1, if that is larger); allowed are {limits}. The last column is the largest error of theta in fp32 and "
            "int8, which never quantises a transformer."
        ),
        "",
        "| transform | kernel | padding | " + " | ".join(precisions) + " | theta |",
        "|---|---|---|" + "---:|" * (len(precisions) + 1),
    ]
    for cell in cells:
        errors = " | ".join(_error(cell.reports[precision], "logits") for precision in precisions)
        theta = max((cell.reports["fp32"], cell.reports["int8"]), key=lambda report: worst_error(report, "theta"))
        lines.append(f"| {cell.kind} | {cell.mode} | {cell.padding} | {errors} | {_error(theta, 'theta')} |")
    return "\n".join([*lines, "", _summary(cells), ""])


def worst_error(report: ParityReport, output: str) -> float:
    """The largest error of an output, as a share of its largest number or of 1."""
    rows = [row for row in report.rows if row.output == output]
    return max(min(row.max_absolute, row.max_relative) if row.max_relative else row.max_absolute for row in rows)


def _error(report: ParityReport, output: str) -> str:
    failed = any(row.failure for row in report.rows if row.output == output)
    return f"{worst_error(report, output):.1e}" + (" **failed**" if failed else "")


def _summary(cells: list[Cell]) -> str:
    worst = {
        precision: max(worst_error(cell.reports[precision], "logits") for cell in cells) for precision in PRECISIONS
    }
    failed = sum(bool(report.failures) for cell in cells for report in cell.reports.values())
    return f"Worst: {', '.join(f'{name} {error:.1e}' for name, error in worst.items())}. Failed: {failed}."
