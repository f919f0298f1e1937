"""What exported transformers cost in ONNX Runtime, and what each precision brings, side by side in one run.

    python -m benchmarks.export --threads 1
    python -m benchmarks.export --matrix

The first writes benchmarks/results/export.md: our grid against `F.affine_grid`, the share of time of each operator, and
the precisions of a trained model. The second writes docs/export-matrix.md: every transform, kernel, padding and
precision against PyTorch (some minutes).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import onnxruntime as ort
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cells import hardware
from benchmarks.export_matrix import combinations, measure_cells, render
from benchmarks.operators import by_operator, profile
from benchmarks.training_speed import time_rounds
from export.measurement import accuracy_percent
from export.onnx_export import export_onnx, quiet_exporter
from export.quantization import quantize
from export.source import from_checkpoint
from training.checkpoint import build_network
from training.config import load_recipe
from training.data.digits import DigitsData
from training.models.network import Network
from training.stn import Affine, Sampler, SpatialTransformer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "export.md"
MATRIX = ROOT / "docs" / "export-matrix.md"
BATCH = 16
PROFILED_RUNS = 200
LABELS = tuple("0123456789")


class TorchAffine(Affine):
    """The same transform with PyTorch's own grid."""

    def grid(self, theta: Tensor) -> Tensor:
        """As tutorials make it."""
        return F.affine_grid(theta, [theta.shape[0], 1, *self.output_size], align_corners=False)


class Bare(nn.Module):
    """Guard, grid and sampler: a transformer without its localisation network."""

    def __init__(self, transform: Affine) -> None:
        super().__init__()
        self.transform = transform
        self.sampler = Sampler()

    def forward(self, maps: Tensor, parameters: Tensor) -> Tensor:
        """The warped maps."""
        _, grid = self.transform(parameters)
        warped: Tensor = self.sampler(maps, grid, grid_is_finite=True)
        return warped


def transformers(folder: Path, side: int = 40) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The bare transformer with both grids, as files with their inputs."""
    maps, parameters = torch.rand(BATCH, 1, side, side), torch.eye(2, 3).flatten() + 0.1 * torch.randn(BATCH, 6)
    feed = {"maps": maps.numpy(), "parameters": parameters.numpy()}
    files = {}
    for name, kind in (("own grid", Affine), ("F.affine_grid", TorchAffine)):
        path = folder / f"transformer-{name}.onnx"
        with quiet_exporter():
            torch.onnx.export(
                Bare(kind((side, side))).eval(),
                (maps, parameters),
                path,
                input_names=list(feed),
                opset_version=18,
                dynamic_shapes={"maps": {0: "batch"}, "parameters": {0: "batch"}},
                dynamo=True,
                verbose=False,
                external_data=False,
            )
        files[name] = path, feed
    return files


def networks(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The network of the recipe `demo_digits` with both grids."""
    recipe = load_recipe("demo_digits")
    assert isinstance(recipe.data, DigitsData)  # noqa: S101 - the recipe's own
    side = recipe.data.distortion.canvas
    network = build_network(recipe, (1, side, side), len(LABELS)).eval()
    feed = {"image": np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 1), np.uint8)}
    files = {}
    for name, kind in (("own grid", Affine), ("F.affine_grid", TorchAffine)):
        _replace_grids(network, kind)
        files[name] = folder / f"network-{name}.onnx", feed
        export_onnx(network, LABELS, files[name][0])
    return files


def _replace_grids(network: Network, kind: type[Affine]) -> None:
    for module in network.modules():
        if isinstance(module, SpatialTransformer):
            height, width = module.transform.output_size
            module.transform = kind((height, width), bounded=module.transform.bounded)


def compare(files: dict[str, tuple[Path, dict[str, Any]]], threads: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round of each file, in turn."""
    programs: dict[str, Callable[[], None]] = {}
    for name, (path, feed) in files.items():
        programs[name] = _program(load(path, threads), feed)
    return {name: [1e3 * seconds for seconds in times] for name, times in time_rounds(programs, rounds, 20).items()}


def _program(session: ort.InferenceSession, feed: dict[str, Any]) -> Callable[[], None]:
    return lambda: session.run(None, feed)


def load(path: Path, threads: int) -> ort.InferenceSession:
    """A session as a server would open it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def operator_shares(path: Path, feed: dict[str, Any], threads: int) -> list[tuple[str, float]]:
    """Percent of the time spent in each operator, largest first."""
    operators = by_operator(profile(path, feed, threads, PROFILED_RUNS))
    total = sum(ms for _, ms in operators)
    return [(name, 100 * ms / total) for name, ms in operators]


def precisions(checkpoint: Path, threads: int, rounds: int, folder: Path) -> list[str]:
    """A table of size, accuracy and time of a trained model in each precision."""
    source = from_checkpoint(checkpoint)
    assert source.data  # noqa: S101 - checkpoints bring their data
    tuning, validation = source.data.tuning(), list(source.data.validation())
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8")}
    export_onnx(source.network, source.labels, files["fp32"])
    export_onnx(source.network, source.labels, files["fp16"], half=True)
    made = quantize(
        files["fp32"], files["int8"], source.data.calibration(), lambda f: accuracy_percent(load(f, 1), tuning), 0.1
    )
    lines = [
        (
            f"{source.description}, {sum(len(classes) for _, classes in validation)} test images; int8 leaves "
            f"{', '.join(made.left_out) or 'no layer'} out of {len(made.quantized) + len(made.left_out)}."
        ),
        "",
        "| precision | size, KB | right, % | ms at batch 1 | ms at batch 16 | of fp32's time |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    times = {
        batch: compare({n: (f, {"image": validation[0][0][:batch]}) for n, f in files.items()}, threads, rounds)
        for batch in (1, BATCH)
    }
    for name, file in files.items():
        right = accuracy_percent(load(file, threads), validation)
        speeds = " | ".join(_spread(times[batch][name]) for batch in times)
        ratio = median(times[BATCH][name]) / median(times[BATCH]["fp32"])
        lines.append(f"| {name} | {file.stat().st_size / 1e3:.0f} | {right:.2f} | {speeds} | {ratio:.2f} |")
    return lines


def _spread(times: list[float]) -> str:
    low, *_, high = quantiles(times, n=10)
    return f"{median(times):.3f} ({low:.3f} to {high:.3f})"


def _comparison(title: str, times: dict[str, list[float]]) -> str:
    ratio = median(times["own grid"]) / median(times["F.affine_grid"])
    return f"| {title} | {_spread(times['own grid'])} | {_spread(times['F.affine_grid'])} | {ratio:.2f} |"


def report(checkpoint: Path | None, threads: int, rounds: int) -> str:
    """The results, in Markdown."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = {"transformer, 40x40x1": transformers(folder), "network of `demo_digits`": networks(folder)}
        lines = [
            "# What exported transformers cost",
            "",
            (
                f"`python -m benchmarks.export --threads {threads} --rounds {rounds}`, {datetime.now(UTC):%Y-%m-%d}, "
                f"{hardware(torch.device('cpu'))}, ONNX Runtime {ort.__version__}. Milliseconds: median of {rounds} "
                f"alternating rounds, in brackets the middle 80 %. Batch {BATCH}."
            ),
            "",
            "## Our grid against `F.affine_grid`",
            "",
            "| | own grid | F.affine_grid | of its time |",
            "|---|---:|---:|---:|",
            *(_comparison(title, compare(files, threads, rounds)) for title, files in pairs.items()),
        ]
        for title, files in pairs.items():
            lines += [
                "",
                f"## Where the time goes: {title}",
                "",
                "| | own grid | | F.affine_grid |",
                "|---|---:|---|---:|",
            ]
            columns = [operator_shares(*files[name], threads) for name in ("own grid", "F.affine_grid")]
            for row in range(max(map(len, columns))):
                cells = [f"{c[row][0]} | {c[row][1]:.1f} %" if row < len(c) else " | " for c in columns]
                lines.append(f"| {' | '.join(cells)} |")
        if checkpoint:
            lines += ["", "## Precisions", "", *precisions(checkpoint, threads, rounds, folder)]
    return "\n".join([*lines, ""])


def main(
    matrix: Annotated[bool, typer.Option("--matrix", help="Write docs/export-matrix.md instead.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="A trained model, to compare its precisions.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime and torch.")] = 1,
    rounds: Annotated[int, typer.Option(min=10, help="Of timing.")] = 200,
) -> None:
    """Measure, print and write the results."""
    torch.set_num_threads(threads)
    path, text = (MATRIX, render(list(measure_cells(combinations())))) if matrix else (RESULTS, "")
    text = text or report(checkpoint, threads, rounds)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
