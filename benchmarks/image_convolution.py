"""How much faster the gradient of images goes through the first convolution behind a transformer.

    python -m benchmarks.image_convolution

One thread, batches of 16, a 5x5 convolution, both ways in turn. Writes benchmarks/results/image_convolution.md.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.training_speed import milliseconds, time_rounds
from training.models.image_convolution import MIN_OUTPUTS, gradient_of_images

RESULTS = Path(__file__).parent / "results" / "image_convolution.md"
BATCH, ROUNDS = 16, 25
MAPS = ((8, 128), (24, 64), (48, 64), (48, 128))
"""Filters, and height and width of the images: ST-CNN Multi of an eighth, half and the whole of the paper's width."""


def main() -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    lines = [_line(*sizes, kind) for kind in (torch.float32, torch.bfloat16) for sizes in MAPS]
    RESULTS.write_text(
        f"""# The gradient of images through a convolution

`python -m benchmarks.image_convolution`, {datetime.now(UTC).date()}, one thread of a {platform.machine()} CPU, PyTorch
{torch.__version__}, batches of {BATCH} images of 3 channels, a 5x5 convolution, `channels_last`. Milliseconds,
median of {ROUNDS} rounds in turn (minimum to maximum). With fewer than {MIN_OUTPUTS} filters the product leaves it to
the library.

| | filters | height and width | the library's gradient of the images | by columns | times as fast |
|---|---:|---:|---:|---:|---:|
"""
        + "\n".join(lines)
        + "\n"
    )
    print(RESULTS.read_text())


def _line(filters: int, side: int, kind: torch.dtype) -> str:
    ways = _ways(filters, side, kind)
    times = time_rounds(ways, ROUNDS)
    before, after = (median(times[name]) for name in ways)
    columns = (filters, side, *(milliseconds(times[name]) for name in ways), f"{before / after:.1f}")
    return f"| {str(kind).removeprefix('torch.')} | {' | '.join(map(str, columns))} |"


def _ways(filters: int, side: int, kind: torch.dtype) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    usual = nn.Conv2d(3, filters, 5, padding=2).to(dtype=kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, 3, side, side).to(dtype=kind, memory_format=torch.channels_last).requires_grad_()
    answer = usual(images)
    pull = torch.rand_like(answer)
    return {
        "library": lambda: torch.autograd.grad(answer, images, pull, retain_graph=True),
        "columns": lambda: gradient_of_images(pull, usual.weight.detach()),
    }


if __name__ == "__main__":
    main()
