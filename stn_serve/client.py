"""The client: images in, predictions out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar, Unpack

from numpy.typing import ArrayLike, NDArray

from stn_serve.addresses import Address, ConnectionOptions
from stn_serve.batches import Batch, Outcome, PredictOptions, batches, single
from stn_serve.errors import ServingError, Unavailable
from stn_serve.image_sources import ImageSource
from stn_serve.prediction import Prediction
from stn_serve.retries import Attempts
from stn_serve.transports import connect

DEFAULT_ADDRESS = "localhost:8001"

Answer = TypeVar("Answer")


class Client:
    """Asks a running `stn serve` about images, or any server of the Open Inference Protocol about tensors.

        with Client("localhost:8001") as client:
            prediction = client.predict("digit.png")
            prediction.label, prediction.probability, prediction.transforms[0].pose
            prediction.draw("digit.png").save("answer.png")

    Connections stay open between calls. Threads may share a client.

    Args:
        address: `host:port` for gRPC, `http://host:port` for HTTP; with TLS `grpcs://host:port`, `https://host:port`.
        timeout_s: how long to wait for an answer, unless a call says otherwise.
        retries: how often to ask again where the server refuses for now, or cannot be reached. The time stays the same.
        concurrency: requests in flight at the same time, of one list of images.
        **connection: certificates and token, see `ConnectionOptions`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        concurrency: int = 4,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        self._transport = connect(Address.parse(address, **connection))
        self._timeout_s = timeout_s
        self._retries = retries
        self._concurrency = concurrency

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self._transport.close()

    def predict(
        self, image: ImageSource, *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> Prediction:
        """Classify one image.

        Args:
            image: encoded bytes (JPEG, PNG, WebP, BMP), a path, a Pillow image, or a uint8 array `[H, W]`, `[H, W, 1]`
                or `[H, W, 3]`.
            timeout_s: for this call.
            **options: model, version, top_k, crops and crop_side, see `PredictOptions`.

        Raises:
            ServingError: `InvalidRequest` for an image that cannot be used, `NotFound` for an unknown model,
                `Unavailable` where no server answers or it is busy, `DeadlineExceeded` when the time is up.
        """
        [batch] = batches([image], options)
        return single(self._answer(batch, timeout_s))

    def predict_many(
        self, images: Iterable[ImageSource], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> list[Outcome]:
        """Classify images, many in one request; `timeout_s` is for each request, the options are those of `predict`.

        Returns:
            For each image, in order, its prediction or the error that concerns it alone: one bad image costs the others
            nothing.

        Raises:
            ServingError: what concerns all of them, such as an unknown model; see `predict`.
        """
        return list(self.predict_iter(images, timeout_s=timeout_s, **options))

    def predict_iter(
        self, images: Iterable[ImageSource], *, timeout_s: float | None = None, **options: Unpack[PredictOptions]
    ) -> Iterator[Outcome]:
        """As `predict_many`, for more images than fit into memory: they are read as their outcomes are taken."""
        in_flight: deque[Future[list[Outcome]]] = deque()
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="predict")
        try:
            for batch in batches(images, options):
                in_flight.append(pool.submit(self._answer, batch, timeout_s))
                if len(in_flight) == self._concurrency:
                    yield from in_flight.popleft().result()
            while in_flight:
                yield from in_flight.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Run a model on tensors: arrays by name in, arrays by name out, of the types that they have.

        Args:
            model: its name.
            inputs: with the batch axis, where the model has one. Strings are BYTES.
            version: the newest by default.
            outputs: those wanted; all by default.
            timeout_s: for this call.

        Raises:
            ServingError: `InvalidRequest` for tensors that do not fit the model; the others as in `predict`.
        """
        from stn_serve import tensor_messages  # takes 0.4 s, and few callers need it

        request = tensor_messages.infer_request(model, version, inputs, outputs)
        return tensor_messages.arrays(
            self._ask(lambda remaining_s: self._transport.infer(request, remaining_s), timeout_s)
        )

    def _answer(self, batch: Batch, timeout_s: float | None) -> list[Outcome]:
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                if part.images:
                    self._ask(lambda remaining_s: self._send(part, remaining_s), timeout_s)  # noqa: B023 - called here
            except ServingError as error:
                parts += part.recover(error)
        return batch.answers()

    def _send(self, batch: Batch, timeout_s: float) -> None:
        batch.take(self._transport.predict(batch.request(), timeout_s))

    def _ask(self, send: Callable[[float], Answer], timeout_s: float | None) -> Answer:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                return send(attempts.remaining_s)
            except Unavailable as error:
                time.sleep(attempts.pause_s(error))
