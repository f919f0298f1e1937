"""The networks that `benchmarks.models` measures: as PyTorch has them, and exported in float32 and int8.

Time does not depend on what weights have learned, so all but the shipped files have fresh ones. int8 is what `stn
export --precision int8` makes where accuracy bears every layer that it may quantise: by the product's own quantiser,
which sees noise here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from export.onnx_export import export_onnx
from export.parity_cases import Images
from export.pixel_sampling import sample_by_pixel
from export.quantization import quantize
from stn_serve.repository import read_config
from stn_serve.signature import metadata_of_config
from training.checkpoint import build_network
from training.config import Recipe, load_recipe, recipe_from_fields
from training.data.composed_numbers import LABELS
from training.models.network import Network
from training.models.photos import PhotosModel

REPOSITORY = Path(__file__).parents[1] / "model_repository"
CALIBRATION_VALUES = 2**21
PAPER_SIZE = 64
BATCHES = (1, 4, 16, 64)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network, and how large its batches may be."""

    name: str
    title: str
    recipe: Recipe
    input_size: tuple[int, int, int]
    """Channels, height and width."""
    labels: tuple[str, ...]
    shipped: Path | None = None
    """The exported file, of a model of the repository."""
    max_batch_size: int = BATCHES[-1]

    @property
    def batches(self) -> list[int]:
        """The batch sizes to measure."""
        return sorted({min(batch, self.max_batch_size) for batch in BATCHES})

    def network(self) -> Network:
        """With fresh weights, the same each time, ready to answer."""
        torch.manual_seed(0)
        return build_network(self.recipe, self.input_size, len(self.labels)).eval()

    def images(self, count: int) -> Images:
        """Noise, as a decoder would yield it."""
        channels, height, width = self.input_size
        return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)

    def files(self, folder: Path) -> dict[str, Path]:
        """The exported files by precision; those that the folder has are taken as they are."""
        made = {precision: folder / f"{self.name}-{precision}.onnx" for precision in ("fp32", "int8")}
        if all(path.exists() for path in made.values()):
            return made
        folder.mkdir(parents=True, exist_ok=True)
        export_onnx(self.network(), self.labels, made["fp32"])
        images = self.images(max(1, CALIBRATION_VALUES // int(np.prod(self.input_size))))
        quantize(made["fp32"], made["int8"], images[:64], judge=lambda _: 100.0, allowed_points=0.0)
        for path in made.values():
            sample_by_pixel(path)
        if self.shipped:
            shutil.copy(self.shipped, made["fp32"])
        return made


def subjects() -> list[Subject]:
    """The shipped models, and the paper's house number networks at their full size."""
    return [*map(_shipped, sorted(path.parent for path in REPOSITORY.glob("*/config.pbtxt"))), *paper().values()]


def paper(size: int = PAPER_SIZE) -> dict[str, Subject]:
    """ST-CNN Multi and its plain CNN (section 4.2)."""
    titles = {"multi": "ST-CNN Multi", "none": "CNN"}
    return {
        kind: Subject(
            name=f"paper_{'cnn' if kind == 'none' else kind}",
            title=f"the paper's {title}, {size} px",
            recipe=load_recipe("house_numbers_paper", [f"model.transformers={kind}", "model.head_std=0.01"]),
            input_size=(3, size, size),
            labels=tuple(LABELS),
        )
        for kind, title in titles.items()
    }


def photos(transformers: int, template: Subject) -> Subject:
    """The shipped birds' network with another number of transformers."""
    assert isinstance(template.recipe.model, PhotosModel)  # noqa: S101 - birds are photos
    recipe = replace(template.recipe, model=replace(template.recipe.model, transformers=transformers))
    return replace(template, name=f"birds_{transformers}x", recipe=recipe, shipped=None)


def _shipped(directory: Path) -> Subject:
    config = read_config(directory)
    metadata = metadata_of_config(config)
    assert metadata  # noqa: S101 - exported by this project
    [version] = [path for path in directory.iterdir() if path.name.isdecimal()]
    image = metadata.input
    return Subject(
        name=directory.name,
        title=f"`{directory.name}`",
        recipe=recipe_from_fields(json.loads((version / "provenance.json").read_text())["recipe"]),
        input_size=(image.channels, image.height, image.width),
        labels=metadata.labels,
        shipped=version / "model.onnx",
        max_batch_size=config.max_batch_size,
    )


def named(names: Sequence[str]) -> list[Subject]:
    """Some of them; all if none is named.

    Raises:
        ValueError: there is no such network.
    """
    known = {subject.name: subject for subject in subjects()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{unknown[0]} is not known, expected some of {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())
