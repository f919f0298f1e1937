"""SVHN's full house numbers (Netzer et al. 2011): read, checked, cropped once, then served from disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from training.data.composed_numbers import LABELS, Crop
from training.data.mnist import DataError
from training.data.svhn_annotations import FILE, read_annotations
from training.data.svhn_crops import Numbers, numbers_of, write_crops
from training.data.svhn_download import download_part

Part = Literal["train", "test", "extra"]
VALIDATION_IMAGES = 5_000
"""Kept out of training, as the paper's, for choosing hyper-parameters."""
SPLIT_SEED = 20110803


class Crops:
    """The numbers of one of SVHN's folders, cropped: images UINT8 `[N, size, size, 3]`, classes `[N, 5]`."""

    def __init__(self, folder: Path, crop: Crop, size: int) -> None:
        annotations = read_annotations(folder)
        _check_images(folder, annotations.names.tolist())
        self.numbers: Numbers = numbers_of(annotations)
        path = folder / f"crops-{crop}-{size}.npy"
        if not path.exists() or path.stat().st_mtime_ns < (folder / FILE).stat().st_mtime_ns:
            with _progress(f"cropping {folder.name}") as watch:
                write_crops(folder, self.numbers, crop, size, path, watch)
        self.images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        if self.images.shape != (len(self.numbers.names), size, size, 3):
            raise DataError(
                f"{path} has shape {self.images.shape}, not that of {FILE}; delete it, it will be made anew"
            )

    def __len__(self) -> int:
        return len(self.numbers.names)


class StreetNumbers:
    """SVHN on a device: images `[N, 3, size, size]` in [0, 1], classes `[N, 5]`.

    Args:
        crop: how closely the numbers are cropped.
        size: height and width of an image.
        extra: train on the 202,353 easier images as well.
        measured_on: `test`, or the `validation` images that training never sees.
        device: where batches go.
        seed: of the order of training images.

    Raises:
        DataError: SVHN is not there and cannot be had, or is damaged.
    """

    labels = LABELS

    def __init__(
        self,
        crop: Crop,
        size: int,
        *,
        extra: bool,
        measured_on: Literal["test", "validation"],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        parts: tuple[Part, ...] = ("train", "extra") if extra else ("train",)
        self.size = size
        self.device = device
        self.seed = seed
        self.source = f"SVHN ({' + '.join(parts)}), {crop} crops, measured on {measured_on}"
        crops = [Crops(find_part(part), crop, size) for part in parts]
        self._pools = [one.images for one in crops]
        self._starts = np.concatenate([[0], np.cumsum([len(one) for one in crops])])
        self._targets = torch.from_numpy(np.concatenate([one.numbers.targets for one in crops]))
        order = torch.randperm(len(self._targets), generator=torch.Generator().manual_seed(SPLIT_SEED))
        kept_out = min(VALIDATION_IMAGES, len(order) // 5)
        self._validation, self._training = order[:kept_out], order[kept_out:]
        self._test = Crops(find_part("test"), crop, size) if measured_on == "test" else None

    @property
    def sha256(self) -> str:
        """Of the names and classes of all images, and of the pixels of every hundredth: all of them take minutes."""
        digest = hashlib.sha256(np.ascontiguousarray(self._targets).tobytes())
        for pool in self._pools:
            digest.update(np.ascontiguousarray(pool[::100]).tobytes())
        return digest.hexdigest()

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return 3, self.size, self.size

    @property
    def train_count(self) -> int:
        """Images in an epoch."""
        return len(self._training)

    def train_batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches; what does not fill the last one waits for another epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = self._training[torch.randperm(len(self._training), generator=generator)]
        size = min(batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            yield self._batch(order[start : start + size])

    def test_batches(self, batch_size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        """The test or the validation images, always in the same order."""
        if self._test is None:
            for chosen in self._validation.split(batch_size):
                yield self._batch(chosen)
            return
        targets = torch.from_numpy(self._test.numbers.targets)
        for start in range(0, len(targets), batch_size):
            end = start + batch_size
            yield self._to_device(self._test.images[start:end]), targets[start:end].to(self.device)

    def _batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        rows = chosen.numpy()
        pool = np.searchsorted(self._starts, rows, side="right") - 1
        pixels = np.stack([self._pools[p][row - self._starts[p]] for p, row in zip(pool, rows, strict=True)])
        return self._to_device(pixels), self._targets[chosen].to(self.device)

    def _to_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(np.array(pixels)).to(self.device, non_blocking=True)
        return images.movedim(-1, 1).float() / 255


def find_part(part: Part) -> Path:
    """The folder of a part, downloaded where it is in none of the places it may be.

    Raises:
        DataError: it cannot be had.
    """
    import pooch

    configured = os.environ.get("STN_DATA_DIR")
    roots = [*([Path(configured)] if configured else []), Path(pooch.os_cache("stn-serve"))]
    for root in roots:
        if (root / "svhn" / part).is_dir():
            return root / "svhn" / part
    with _progress(f"downloading {part}.tar.gz of SVHN") as watch:
        download_part(part, roots[0] / "svhn", watch)
    return roots[0] / "svhn" / part


def _check_images(folder: Path, names: Sequence[str]) -> None:
    there = {entry.name for entry in os.scandir(folder)}
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{folder / FILE} names {len(names):,} images, {len(missing):,} of them are not there ({missing[0]}, ...); "
            f"unpack {folder.name}.tar.gz there again"
        )


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal for work of minutes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
