"""The client: images in, predictions out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from stn_serve.errors import InvalidRequest, ServingError
from stn_serve.image_sources import ImageSource, encode
from stn_serve.prediction import Prediction
from stn_serve.proto import image_prediction_pb2 as pb
from stn_serve.transports import connect, error_from_code

DEFAULT_ADDRESS = "localhost:8001"

LARGEST_BATCH = 32
LARGEST_BATCH_BYTES = 16 * 2**20
"""Where `predict_many` begins another request; one image may be larger by itself."""


class Client:
    """Asks a running `stn serve` about images.

        with Client("localhost:8001") as client:
            prediction = client.predict("digit.png")
            prediction.label, prediction.probability, prediction.transforms[0].pose
            prediction.draw("digit.png").save("answer.png")

    Connections stay open between calls. Threads may share a client.

    Args:
        address: `host:port` for gRPC, `http://host:port` for HTTP.
        timeout_s: how long to wait for an answer, unless a call says otherwise.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, timeout_s: float = 60.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._transport = connect(address)
        self._only_model = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._transport.close()

    def predict(
        self, image: ImageSource, *, model: str = "", version: str = "", top_k: int = 5, timeout_s: float | None = None
    ) -> Prediction:
        """Classify one image.

        Args:
            image: encoded bytes (JPEG, PNG, WebP, BMP), a path, a Pillow image, or a uint8 array `[H, W]`, `[H, W, 1]`
                or `[H, W, 3]`.
            model: may be left out where the server has just one.
            version: the newest by default.
            top_k: how many classes to return.
            timeout_s: for this call.

        Raises:
            ServingError: `InvalidRequest` for an image that cannot be used, `NotFound` for an unknown model,
                `Unavailable` where no server answers or it is busy, `DeadlineExceeded` when the time is up.
        """
        [outcome] = self.predict_many([image], model=model, version=version, top_k=top_k, timeout_s=timeout_s)
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome

    def predict_many(
        self,
        images: Iterable[ImageSource],
        *,
        model: str = "",
        version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
    ) -> list[Prediction | ServingError]:
        """Classify images, many in one request; `timeout_s` is for each request.

        Returns:
            For each image, in order, its prediction or the error that concerns it alone: one bad image costs the others
            nothing.

        Raises:
            ServingError: what concerns all of them, such as an unknown model; see `predict`.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        outcomes: list[Prediction | ServingError] = []
        for batch in _batches(images):
            request = pb.PredictRequest(
                model_name=model or self._find_only_model(timeout_s),
                model_version=version,
                images=[item for item in batch if isinstance(item, bytes)],
                top_k=top_k,
            )
            answers = iter(self._ask(request, timeout_s))
            outcomes += [next(answers) if isinstance(item, bytes) else item for item in batch]
        return outcomes

    def _ask(self, request: pb.PredictRequest, timeout_s: float) -> list[Prediction | ServingError]:
        if not request.images:
            return []
        try:
            response = self._transport.predict(request, timeout_s)
        except InvalidRequest as error:  # a request of a single image fails with that image's error
            if len(request.images) > 1:
                raise
            return [error]
        return [_outcome(result, response) for result in response.results]

    def _find_only_model(self, timeout_s: float) -> str:
        if not self._only_model:
            names = self._transport.model_names(timeout_s)
            if len(names) != 1:
                found = f"{len(names)} models ({', '.join(names)}): say which" if names else "no model that is ready"
                raise InvalidRequest(f"the server at {self._address} has {found}")
            self._only_model = names[0]
        return self._only_model


def _batches(images: Iterable[ImageSource]) -> Iterator[list[bytes | InvalidRequest]]:
    """Encoded images, or why one could not be encoded, in groups that fit into one request."""
    batch: list[bytes | InvalidRequest] = []
    size = 0
    for image in images:
        item = _encoded(image)
        length = len(item) if isinstance(item, bytes) else 0
        if batch and (len(batch) == LARGEST_BATCH or size + length > LARGEST_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def _encoded(image: ImageSource) -> bytes | InvalidRequest:
    try:
        return encode(image)
    except InvalidRequest as error:
        return error


def _outcome(result: pb.ImageResult, response: pb.PredictResponse) -> Prediction | ServingError:
    if result.HasField("error"):
        return error_from_code(result.error.code, result.error.message)
    return Prediction.from_message(result.prediction, response.model_name, response.model_version)
