"""Photos of things, class by class, as networks learn from them: cut at random, mirrored, brought to one size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stn_serve.images import Pixels, fit
from stn_serve.metadata import InputImage, Resize
from training.data.decoded import DecodedPhotos, reduce_photo

MARGIN = 8 / 7
"""Decoded photos are kept this much larger than the network's input: the paper cuts 224 pixels out of 256."""
TEST_BATCH = 50
TEST_SEED = 20150605
RESIZE: Resize = "crop"
"""Things keep their proportions, and what a photo shows is mostly in its middle."""

Loader = Callable[[int], Pixels]


@dataclass(frozen=True, slots=True)
class Photo:
    """A file and its class."""

    path: Path
    label: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoList:
    """A data set before any file of it is read."""

    source: str
    labels: tuple[str, ...]
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What a training photo goes through. Test photos are fitted as a server fits a caller's."""

    crop: tuple[float, float] = (7 / 8, 7 / 8)
    """Side of the square that is cut out at random, against the photo's shorter side: smallest and largest."""
    flip: bool = True
    """Mirror every other photo."""


class Photos:
    """Photos on a device: images `[N, 3, size, size]` in [0, 1], classes `[N]`.

    Args:
        photos: which.
        size: height and width of the images.
        augmentation: of training images.
        device: where batches go.
        seed: of their order and augmentation.

    Raises:
        DataError: files that are no photos.
    """

    def __init__(
        self, photos: PhotoList, size: int, augmentation: Augmentation, device: torch.device, seed: int
    ) -> None:
        self.labels = photos.labels
        self.source = photos.source
        self.input_size = (3, size, size)
        self.photos = photos
        self._augmentation = augmentation
        self._device = device
        self._seed = seed
        everything = (*photos.train, *photos.test)
        paths = [photo.path for photo in everything]
        self._decoded = DecodedPhotos(paths, self._prepared, f"{size}-{len(photos.train)}", _cache())
        self._classes = torch.tensor([photo.label for photo in everything])
        self._test_order: list[int] = np.random.default_rng(TEST_SEED).permutation(len(photos.test)).tolist()
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    @property
    def sha256(self) -> str:
        """Of all files, their classes and which are tested."""
        digest = hashlib.sha256(self._decoded.sha256.encode())
        digest.update(np.asarray(self._classes, np.int64).tobytes())
        digest.update(str(self.train_count).encode())
        return digest.hexdigest()

    @property
    def target(self) -> InputImage:
        """How a caller's photo, or one that is tested, becomes an image."""
        _, height, width = self.input_size
        return InputImage(height=height, width=width, color="rgb", resize=RESIZE)

    @property
    def train_count(self) -> int:
        """Images in an epoch."""
        return len(self.photos.train)

    def train_batches(self, epoch: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, freshly augmented batches; what does not fill the last one waits for another epoch."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(self.train_count)
        uniform = random.random((self.train_count, 4))
        batch_size = min(batch_size, self.train_count)
        whole = order[: len(order) - len(order) % batch_size].tolist()
        return self._batches(whole, batch_size, lambda index: self._augmented(index, uniform[index]))

    def test_batches(self, batch_size: int = TEST_BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images, always the same in the same order, classes mixed."""
        return self._batches(
            [self.train_count + index for index in self._test_order], batch_size, lambda index: self._decoded[index]
        )

    @property
    def test_photos(self) -> list[Photo]:
        """What `test_batches` shows, in its order."""
        return [self.photos.test[index] for index in self._test_order]

    def _batches(self, order: Sequence[int], batch_size: int, load: Loader) -> Iterator[tuple[Tensor, Tensor]]:
        """The next batch is loaded while the last is worked on."""
        loading: list[tuple[Sequence[int], list[Future[Pixels]]]] = []
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            loading.append((indices, [self._threads.submit(load, int(index)) for index in indices]))
            if len(loading) == 2:
                yield self._batch(*loading.pop(0))
        for indices, futures in loading:
            yield self._batch(indices, futures)

    def _batch(self, indices: Sequence[int], futures: Sequence[Future[Pixels]]) -> tuple[Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([future.result() for future in futures]))
        images = pixels.to(self._device).permute(0, 3, 1, 2).float() / 255
        return images, self._classes[list(indices)].to(self._device)

    def _prepared(self, index: int, photo: Pixels) -> Pixels:
        """Of a training photo as much as augmentation needs; a test photo as a server fits it."""
        if index < self.train_count:
            return reduce_photo(photo, round(self.target.width * MARGIN))
        return fit(photo, self.target)[0]

    def _augmented(self, index: int, uniform: np.ndarray) -> Pixels:
        photo = self._decoded[index]
        height, width = photo.shape[:2]
        smallest, largest = self._augmentation.crop
        side = min(height, width) * (smallest + (largest - smallest) * uniform[0])
        left, top = (width - side) * uniform[1], (height - side) * uniform[2]
        _, *size = self.input_size
        cut = Image.fromarray(photo).resize(
            (size[1], size[0]), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        pixels = np.asarray(cut)
        return pixels[:, ::-1] if self._augmentation.flip and uniform[3] < 0.5 else pixels


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("stn-serve")) / "photos"
