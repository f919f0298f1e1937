"""The typed image API: encoded images in, classes and where the model looked out.

Each image is decoded in a thread, queues as a row of its own, and is answered for itself: one that cannot be used does
not cost its neighbours theirs. The headers are read first, so that a request is refused by the work it would make and
not by its size, which says little of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext

from PIL import Image

from stn_serve import calls
from stn_serve.budget import Budget
from stn_serve.catalogue import Catalogue
from stn_serve.description import MAX_CROP_SIDE, Array, Prepared, add_crops, describe
from stn_serve.errors import InvalidRequest, PayloadTooLarge, ServingError, Unsupported
from stn_serve.images import DEFAULT_LIMITS, ImageLimits, fit, open_header, read_pixels
from stn_serve.limits import available_cpus
from stn_serve.metadata import InputImage, ModelMetadata
from stn_serve.niceness import give_way
from stn_serve.proto import image_prediction_pb2 as messages
from stn_serve.served_model import ServedModel
from stn_serve.validation import ValidRequest

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
MAX_IMAGES = 1024
"""In a request, and in work at the same time."""

LARGEST_IMAGES_PER_REQUEST = 4
"""A request's images may have as many pixels together as this many of the largest."""

LARGEST_IMAGES_IN_WORK = 16
"""The same of all requests together: seconds of decoding."""

SURPRISE = "internal error; the server's log tells more"

Opened = Image.Image | ServingError
"""An image whose header is read, or why there is none."""


class ImagePrediction:
    """Answers `PredictRequest`s for the models that carry `stn` metadata."""

    def __init__(self, registry: Catalogue, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._registry = registry
        self._limits = limits
        threads = available_cpus()
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=give_way)
        # Headers have threads of their own: a refusal should not wait for the decoding of others.
        self._opening = ThreadPoolExecutor(threads, thread_name_prefix="header")
        self._images = Budget(MAX_IMAGES, "images")
        self._pixels = Budget(LARGEST_IMAGES_IN_WORK * limits.max_pixels, "pixels")
        # Crops keep the whole image until the model has answered; more of them than threads would only fill the memory.
        self._kept_whole = asyncio.Semaphore(threads)

    async def predict(self, request: messages.PredictRequest) -> messages.PredictResponse:
        """Classify every image of a request. A request of a single image fails with that image's error.

        Raises:
            NotFound: no such model or version.
            InvalidRequest: no image, no such crops, or a model that can only be asked with tensors.
            PayloadTooLarge: too many images, or pixels.
            Unavailable: the model's queue is full, or too many images, or pixels, are in work.
        """
        calls.note(request.model_name, request.model_version, request.id)
        served = self._find(request.model_name, request.model_version)
        calls.note(served.model.name, str(served.model.version), request.id)
        loop = asyncio.get_running_loop()
        with served.users, ExitStack() as work:
            with served.request():
                metadata = _image_metadata(served)
                _check(request)
                served.batcher.check_room(remaining_s=calls.remaining_s())  # before anything is decoded in vain
                work.enter_context(self._images.spend(len(request.images)))
                opened = await loop.run_in_executor(self._opening, self._open, list(request.images))
                work.enter_context(self._pixels.spend(self._count_pixels(opened)))
            results = await asyncio.gather(*(self._answer(served, metadata, request, image) for image in opened))
        if len(results) == 1 and isinstance(results[0], ServingError):
            raise results[0]
        calls.failed(sum(isinstance(result, ServingError) for result in results))
        return messages.PredictResponse(
            model_name=served.model.name,
            model_version=str(served.model.version),
            id=request.id,
            results=[_result(outcome) for outcome in results],
        )

    async def respond(self, request: messages.PredictRequest, pending: Budget) -> messages.PredictResponse:
        """As `predict`, for a request of a stream: what it raises becomes the error of the response.

        So does a refusal where its bytes are more than `pending` has room for.
        """
        try:
            with pending.spend(request.ByteSize()):
                return await self.predict(request)
        except ServingError as error:
            return _failed_response(request, error)
        except Exception:
            logger.exception("a request for model '%s' could not be answered", request.model_name)
            return _failed_response(request, ServingError(SURPRISE))

    def close(self) -> None:
        """End the threads."""
        self._opening.shutdown()
        self._decoding.shutdown()

    def _find(self, name: str, version: str) -> ServedModel:
        if name:
            return self._registry.find(name, version)
        names = sorted({served.model.name for served in self._registry})
        if len(names) != 1:
            models = f"{len(names)} models ({', '.join(names)}): say which" if names else "no model that is ready"
            raise InvalidRequest(f"the request names no model, and the server has {models}")
        return self._registry.find(names[0], version)

    def _open(self, images: Sequence[bytes]) -> list[Opened]:
        return [self._open_one(data) for data in images]

    def _open_one(self, data: bytes) -> Opened:
        try:
            return open_header(data, self._limits)
        except ServingError as error:
            return error

    def _count_pixels(self, opened: Sequence[Opened]) -> int:
        pixels = sum(image.width * image.height for image in opened if isinstance(image, Image.Image))
        allowed = LARGEST_IMAGES_PER_REQUEST * self._limits.max_pixels
        if pixels > allowed:
            raise PayloadTooLarge(
                f"the {len(opened)} images of the request have {pixels} pixels together, more than the {allowed} "
                "allowed: send fewer at once"
            )
        return pixels

    async def _answer(
        self, served: ServedModel, metadata: ModelMetadata, request: messages.PredictRequest, image: Opened
    ) -> messages.Prediction | ServingError:
        try:
            async with self._kept_whole if request.crops else nullcontext():
                return await self._answer_one(served, metadata, request, image)
        except ServingError as error:
            calls.forget_frames(error)
            return error
        except Exception:
            logger.exception("an image for model '%s' could not be answered", served.model.name)
            return ServingError(SURPRISE)

    async def _answer_one(
        self, served: ServedModel, metadata: ModelMetadata, request: messages.PredictRequest, image: Opened
    ) -> messages.Prediction:
        loop = asyncio.get_running_loop()
        with served.request() as counted:
            with calls.spending("decode"):
                prepared = await loop.run_in_executor(self._decoding, _prepare, image, metadata.input, request.crops)
            names = ("logits", "theta") if metadata.transformers else ("logits",)
            answer = await counted.run(ValidRequest({"image": prepared.pixels[None]}, names, 1))
            return await loop.run_in_executor(self._decoding, _finish, metadata, prepared, answer.outputs, request)


def _prepare(image: Opened, target: InputImage, keep_whole: bool) -> Prepared:
    if isinstance(image, ServingError):
        raise image
    whole = read_pixels(image, target.color)
    pixels, box = fit(whole, target)
    return Prepared(pixels, box, whole.shape[1], whole.shape[0], whole if keep_whole else None)


def _finish(
    metadata: ModelMetadata, prepared: Prepared, outputs: dict[str, Array], request: messages.PredictRequest
) -> messages.Prediction:
    prediction = describe(metadata, prepared, outputs, request.top_k or DEFAULT_TOP_K)
    if prepared.whole is not None:
        add_crops(prediction, prepared.whole, request.crop_side)
    return prediction


def _image_metadata(served: ServedModel) -> ModelMetadata:
    model, metadata = served.model, served.model.metadata
    if metadata is None:
        raise InvalidRequest(
            f"model '{model.name}' cannot be asked with images: it has no 'stn' metadata. "
            f"Send it tensors: ModelInfer, or POST /v2/models/{model.name}/infer"
        )
    if metadata.transform == "affine_3d":
        raise Unsupported(f"model '{model.name}' cannot be asked with images: affine_3d is not supported, send tensors")
    return metadata


def _check(request: messages.PredictRequest) -> None:
    if not request.images:
        raise InvalidRequest("the request holds no image")
    if len(request.images) > MAX_IMAGES:
        raise PayloadTooLarge(f"the request holds {len(request.images)} images, more than the {MAX_IMAGES} allowed")
    if request.crop_side > MAX_CROP_SIDE:
        raise InvalidRequest(f"crop_side is {request.crop_side}, expected 0 to {MAX_CROP_SIDE} pixels")


def _failed_response(request: messages.PredictRequest, error: ServingError) -> messages.PredictResponse:
    calls.fail(error)
    return messages.PredictResponse(id=request.id, error=_failure(error))


def _result(outcome: messages.Prediction | ServingError) -> messages.ImageResult:
    if isinstance(outcome, messages.Prediction):
        return messages.ImageResult(prediction=outcome)
    return messages.ImageResult(error=_failure(outcome))


def _failure(error: ServingError) -> messages.Failure:
    return messages.Failure(code=error.grpc_code.value[0], message=str(error))
