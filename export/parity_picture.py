"""`parity.png`: for each check the crop that is farthest from PyTorch's, beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.parity_cases import Array, Case, Images, parity_cases
from export.pixel_sampling import sampled
from export.sampler_calls import SamplerCalls
from training.models.network import Network

CELL = 140
GAP = 8
TEXT_HEIGHT = 14
COLUMNS = ("input", "PyTorch's crop", "served crop", "difference")
INK, PAPER = (28, 28, 28), (244, 244, 241)


@dataclass(frozen=True, slots=True)
class WorstCrop:
    """The crop of one check that is farthest from PyTorch's."""

    check: str
    image: Images
    """`[H, W, C]`, what the network was given."""
    expected: Array
    """`[C, h, w]`, of an image, a feature map, or the middle of a volume."""
    served: Array

    @property
    def difference(self) -> Array:
        """Magnitude; infinite where the served crop is not a number."""
        return np.asarray(np.nan_to_num(np.abs(self.served - self.expected), nan=np.inf))


def draw_worst(
    network: Network, directory: Path, version: int, config: ModelConfig, images: Images
) -> Image.Image | None:
    """One row for each check: the input, PyTorch's crop, the served crop, and their difference, made visible.

    The arguments are those of `measure_parity`. None for a network that samples nothing.
    """
    cases = parity_cases(network, directory, version, config, images, edit=_expose_crops)
    worst = [crop for case in cases if (crop := worst_crop(case))]
    return _sheet(worst) if worst else None


def worst_crop(case: Case) -> WorstCrop | None:
    """Of every sampler and every image of a case; None where nothing is sampled. Its graph must expose its crops."""
    names = [output.name for output in case.model.session.get_outputs()[len(case.model.outputs) :]]
    served = case.model.run({"image": case.images}, names) if names else {}
    planes = torch.from_numpy(case.images).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad(), SamplerCalls() as sampling:
        case.network(planes)
    pairs = zip((call.crop.numpy() for call in sampling.calls), served.values(), strict=True)
    crops = [crop for expected, found in pairs for crop in _of_each_image(case, _flat(expected), _flat(found))]
    return max(crops, key=lambda crop: float(crop.difference.max()), default=None)


def _expose_crops(graph: onnx.GraphProto) -> None:
    for name in sampled(graph):
        graph.output.append(onnx.helper.make_empty_tensor_value_info(name))


def _flat(crops: Array) -> Array:
    """`[N, C, h, w]`: of volumes, the slice in the middle."""
    crops = crops.astype(np.float32)
    return crops[:, :, crops.shape[2] // 2] if crops.ndim == 5 else crops


def _of_each_image(case: Case, expected: Array, served: Array) -> list[WorstCrop]:
    """Parallel transformers give several crops of one image, one after another."""
    several = len(expected) // len(case.images)
    return [
        WorstCrop(case.check, case.images[index // several], *both)
        for index, both in enumerate(zip(expected, served, strict=True))
    ]


def _sheet(rows: list[WorstCrop]) -> Image.Image:
    step = CELL + GAP
    height = step + TEXT_HEIGHT
    page = Image.new("RGB", (len(COLUMNS) * step + GAP, len(rows) * height + TEXT_HEIGHT + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(COLUMNS):
        draw.text((GAP + column * step, GAP), title, fill=INK)
    for row, crop in enumerate(rows):
        top = 2 * GAP + TEXT_HEIGHT + row * height
        for column, cell in enumerate(_cells(crop)):
            page.paste(cell, (GAP + column * step, top))
        caption = f"{crop.check}: largest difference {crop.difference.max():.2g}, shown as white"
        draw.text((GAP, top + CELL), caption, fill=INK)
    return page


def _cells(crop: WorstCrop) -> list[Image.Image]:
    low, high = float(crop.expected.min()), float(crop.expected.max())
    return [
        _cell(crop.image.astype(np.float32).mean(-1), 0, 255),
        _cell(crop.expected.mean(0), low, high),
        _cell(crop.served.mean(0), low, high),
        _cell(crop.difference.max(0), 0, float(crop.difference.max())),
    ]


def _cell(values: NDArray[np.float32], low: float, high: float) -> Image.Image:
    """Gray, `low` black and `high` white; every value a square."""
    scale = 255 / (high - low) if np.isfinite(high) and high > low else 1
    shades = (np.nan_to_num(values - low) * scale).clip(0, 255).round().astype(np.uint8)
    return Image.fromarray(shades).resize((CELL, CELL), Image.Resampling.NEAREST).convert("RGB")
