"""How much faster feature maps are sampled by pixel than channel by channel, in ONNX Runtime and in training.

    python -m benchmarks.pixel_sampling

One thread, batches of 16, both ways in turn. Writes benchmarks/results/pixel_sampling.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, save
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training_speed import milliseconds, time_rounds
from export import pixel_sampling
from training.stn.pixel_sampling import MIN_CHANNELS, sample_by_pixel

RESULTS = Path(__file__).parent / "results" / "pixel_sampling.md"
BATCH, ROUNDS = 16, 25
MAPS = ((16, 32), (32, 32), (48, 32), (64, 32), (128, 16))
"""Channels, and height and width: the last three are those that ST-CNN Multi samples at 64 px."""


def main() -> None:
    """Measure, and write the tables."""
    torch.set_num_threads(1)
    lines = [_line(channels, side) for channels, side in MAPS]
    training = [_training_line(channels, side) for channels, side in MAPS]
    RESULTS.write_text(
        f"""# Feature maps sampled by pixel

`python -m benchmarks.pixel_sampling`, {datetime.now(UTC).date()}, one thread of a {platform.machine()} CPU, ONNX
Runtime {ort.__version__}, batches of {BATCH}, samples anywhere in the map. Milliseconds, median of {ROUNDS} rounds in
turn (minimum to maximum).

| channels | height and width | GridSample | ns a value | by pixel | times as fast |
|---:|---:|---:|---:|---:|---:|
"""
        + "\n".join(lines)
        + f"""

In training, PyTorch {torch.__version__}: forward and backward, maps and their gradients as `channels_last`. Of fewer
than {MIN_CHANNELS} channels the product leaves sampling to `F.grid_sample`.

| channels | height and width | F.grid_sample | by pixel | times as fast |
|---:|---:|---:|---:|---:|
"""
        + "\n".join(training)
        + "\n"
    )
    print(RESULTS.read_text())


def _line(channels: int, side: int) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        _write(path, channels, side)
        plain = _program(path, channels, side)
        pixel_sampling.sample_by_pixel(path)
        times = time_rounds({"plain": plain, "pixel": _program(path, channels, side)}, ROUNDS)
    before, after = (median(times[name]) for name in ("plain", "pixel"))
    value_ns = before * 1e9 / (BATCH * channels * side * side)
    columns = (channels, side, milliseconds(times["plain"]), f"{value_ns:.0f}", milliseconds(times["pixel"]))
    return f"| {' | '.join(map(str, columns))} | {before / after:.1f} |"


def _training_line(channels: int, side: int) -> str:
    ways = {"plain": _sample_planes, "pixel": sample_by_pixel}
    times = time_rounds({name: _step(way, channels, side) for name, way in ways.items()}, ROUNDS)
    before, after = (median(times[name]) for name in ways)
    columns = (channels, side, milliseconds(times["plain"]), milliseconds(times["pixel"]), f"{before / after:.1f}")
    return f"| {' | '.join(map(str, columns))} |"


def _sample_planes(maps: Tensor, grid: Tensor) -> Tensor:
    """As torch samples: channel after channel, and back to the layout of convolutions."""
    sampled = F.grid_sample(maps.contiguous(), grid, padding_mode="border", align_corners=False)
    return sampled.contiguous(memory_format=torch.channels_last)


def _step(sample: Callable[[Tensor, Tensor], Tensor], channels: int, side: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, channels, side, side)
    maps, pull = (torch.randn(shape, generator=generator).to(memory_format=torch.channels_last) for _ in range(2))
    grid = torch.rand(BATCH, side, side, 2, generator=generator) * 2 - 1
    inputs = maps.requires_grad_(), grid.requires_grad_()
    return lambda: torch.autograd.grad(sample(*inputs), inputs, pull)


def _write(path: Path, channels: int, side: int) -> None:
    attributes = {"mode": "bilinear", "padding_mode": "border", "align_corners": 0}
    node = helper.make_node("GridSample", ["maps", "grid"], ["warped"], "sampler", **attributes)  # type: ignore[arg-type]
    shapes = {"maps": (channels, side, side), "grid": (side, side, 2), "warped": (channels, side, side)}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in shapes.items()
    }
    graph = helper.make_graph([node], "sampling", [values["maps"], values["grid"]], [values["warped"]])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def _program(path: Path, channels: int, side: int) -> Callable[[], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feed = {
        "maps": random.standard_normal((BATCH, channels, side, side)).astype(np.float32),
        "grid": random.uniform(-1, 1, (BATCH, side, side, 2)).astype(np.float32),
    }
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
