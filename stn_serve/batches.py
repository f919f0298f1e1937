"""What a client asks and is answered, whatever carries it: images in groups, an outcome for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypedDict

from stn_serve.errors import InvalidRequest, PayloadTooLarge, ServingError, Unavailable
from stn_serve.failures import error_from_code
from stn_serve.image_sources import ImageSource, encode
from stn_serve.prediction import Prediction
from stn_serve.proto import image_prediction_pb2 as pb

LARGEST_BATCH = 32
LARGEST_BATCH_BYTES = 16 * 2**20
"""Where another request begins; one image may be larger by itself."""

Outcome = Prediction | ServingError


class PredictOptions(TypedDict, total=False):
    """Keywords of the clients' `predict`, `predict_many` and `predict_iter`."""

    model: str
    """May be left out where the server has just one."""
    version: str
    """The newest by default."""
    top_k: int
    """How many classes to return; 5 by default."""
    crops: bool
    """Whether the server should return what each transformer saw, as `Transform.crop`. `Prediction.rectify` cuts the
    same out of the image here, at its full resolution."""
    crop_side: int
    """Longer side of the crops in pixels, up to 512; by default the size that the transformer produces."""


@dataclass(slots=True)
class Batch:
    """The images of one request, and what has become of them."""

    images: dict[int, bytes]
    """Those without an answer, by their position in `outcomes`."""
    outcomes: list[Outcome | None]
    options: PredictOptions

    def request(self) -> pb.PredictRequest:
        """What to send for the images without an answer."""
        options = self.options
        return pb.PredictRequest(
            model_name=options.get("model", ""),
            model_version=options.get("version", ""),
            images=list(self.images.values()),
            top_k=options.get("top_k", 0),
            crops=options.get("crops", False),
            crop_side=options.get("crop_side", 0),
        )

    def take(self, response: pb.PredictResponse) -> None:
        """Note the answers.

        Raises:
            Unavailable: some images were refused for now; they may be asked again.
            ServingError: the server has not answered every image.
        """
        if len(response.results) != len(self.images):
            raise ServingError(f"the server answered {len(response.results)} of {len(self.images)} images")
        refused: Unavailable | None = None
        for position, result in zip(list(self.images), response.results, strict=True):
            outcome = self.outcomes[position] = _outcome(result, response)
            if isinstance(outcome, Unavailable):
                refused = outcome
            else:
                del self.images[position]
        if refused:
            raise refused

    def recover(self, error: ServingError) -> list[Batch]:
        """What to ask instead, after a request that ended with an error; raises what concerns all of its images."""
        if isinstance(error, PayloadTooLarge) and len(self.images) > 1:
            items = list(self.images.items())
            halves = (items[: len(items) // 2], items[len(items) // 2 :])
            return [Batch(dict(half), self.outcomes, self.options) for half in halves]
        if isinstance(error, InvalidRequest) and len(self.images) == 1:
            [position] = self.images  # a request of a single image fails with that image's error
            self.outcomes[position] = error
        if any(self.outcomes[position] is None for position in self.images):
            raise error
        return []

    def answers(self) -> list[Outcome]:
        """The outcome of every image, in order."""
        return [outcome for outcome in self.outcomes if outcome is not None]


def batches(images: Iterable[ImageSource], options: PredictOptions) -> Iterator[Batch]:
    """Images in groups that fit into one request; the outcome of one that cannot be encoded stands already."""
    group: list[bytes | InvalidRequest] = []
    size = 0
    for image in images:
        item = _encoded(image)
        length = len(item) if isinstance(item, bytes) else 0
        if group and (len(group) == LARGEST_BATCH or size + length > LARGEST_BATCH_BYTES):
            yield _batch(group, options)
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield _batch(group, options)


def single(outcomes: list[Outcome]) -> Prediction:
    """The prediction of a batch of one image.

    Raises:
        ServingError: it has none.
    """
    [outcome] = outcomes
    if isinstance(outcome, ServingError):
        raise outcome
    return outcome


def _batch(group: list[bytes | InvalidRequest], options: PredictOptions) -> Batch:
    images = {position: item for position, item in enumerate(group) if isinstance(item, bytes)}
    return Batch(images, [None if isinstance(item, bytes) else item for item in group], options)


def _encoded(image: ImageSource) -> bytes | InvalidRequest:
    try:
        return encode(image)
    except InvalidRequest as error:
        return error


def _outcome(result: pb.ImageResult, response: pb.PredictResponse) -> Outcome:
    if result.HasField("error"):
        return error_from_code(result.error.code, result.error.message)
    return Prediction.from_message(result.prediction, response.model_name, response.model_version)
