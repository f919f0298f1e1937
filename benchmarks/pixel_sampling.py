"""How much faster feature maps are sampled by pixel than by ONNX Runtime's GridSample, by their channels.

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
from onnx import TensorProto, helper, save

from benchmarks.training_speed import time_rounds
from export import pixel_sampling

RESULTS = Path(__file__).parent / "results" / "pixel_sampling.md"
BATCH, ROUNDS = 16, 25
MAPS = ((16, 32), (48, 32), (64, 32), (128, 16))
"""Channels, and height and width: the last three are those that ST-CNN Multi samples at 64 px."""


def main() -> None:
    """Measure, and write the table."""
    lines = [_line(channels, side) for channels, side in MAPS]
    RESULTS.write_text(
        f"""# Feature maps sampled by pixel

`python -m benchmarks.pixel_sampling`, {datetime.now(UTC).date()}, one thread of a {platform.machine()} CPU, ONNX
Runtime {ort.__version__}, batches of {BATCH}, samples anywhere in the map. Milliseconds, median of {ROUNDS} rounds in
turn (minimum to maximum).

| channels | height and width | GridSample | ns a value | by pixel | times as fast |
|---:|---:|---:|---:|---:|---:|
"""
        + "\n".join(lines)
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
    columns = (channels, side, _spread(times["plain"]), f"{value_ns:.0f}", _spread(times["pixel"]))
    return f"| {' | '.join(map(str, columns))} | {before / after:.1f} |"


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds) * 1e3:.2f} ({min(seconds) * 1e3:.2f} to {max(seconds) * 1e3:.2f})"


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
