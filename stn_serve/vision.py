"""The typed image API: encoded images in, classes and where the model looked out.

Each image is decoded in a thread, queues as a row of its own, and is answered for itself: one that cannot be used does
not cost its neighbours theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stn_serve import poses
from stn_serve.errors import InvalidRequest, ModelFailure, ServingError, Unavailable, Unsupported
from stn_serve.images import DEFAULT_LIMITS, ImageLimits, decode, fit
from stn_serve.metadata import InputImage, ModelMetadata, Transformer
from stn_serve.proto import image_prediction_pb2 as messages
from stn_serve.registry import ModelRegistry, ServedModel
from stn_serve.session import available_cpus
from stn_serve.validation import ValidRequest

Array = NDArray[Any]

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 5
MAX_PENDING_IMAGES = 1024
"""Images that may be in work at the same time; a request that finds more of them is refused."""


class Prepared(NamedTuple):
    """A decoded image as the model's input, and what ties it to the caller's."""

    pixels: NDArray[np.uint8]
    box: poses.Box
    width: int
    height: int


class ImagePrediction:
    """Answers `PredictRequest`s for the models that carry `stn` metadata."""

    def __init__(self, registry: ModelRegistry, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._registry = registry
        self._limits = limits
        self._pool = ThreadPoolExecutor(available_cpus(), thread_name_prefix="decode")
        self._pending = 0

    async def predict(self, request: messages.PredictRequest) -> messages.PredictResponse:
        """Classify every image of a request. A request of a single image fails with that image's error.

        Raises:
            NotFound: no such model or version.
            InvalidRequest: no image, or a model that can only be asked with tensors.
            Unavailable: too many images are in work.
        """
        served = self._registry.find(request.model_name, request.model_version)
        metadata = _image_metadata(served)
        if not request.images:
            raise InvalidRequest("the request holds no image")
        if self._pending >= MAX_PENDING_IMAGES:
            raise Unavailable(f"{self._pending} images are in work, more than the {MAX_PENDING_IMAGES} allowed")
        answers = (self._answer(served, metadata, image, request.top_k or DEFAULT_TOP_K) for image in request.images)
        results = await asyncio.gather(*answers)
        if len(results) == 1 and isinstance(results[0], ServingError):
            raise results[0]
        return messages.PredictResponse(
            model_name=served.model.name,
            model_version=str(served.model.version),
            id=request.id,
            results=[_result(outcome) for outcome in results],
        )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    async def _answer(
        self, served: ServedModel, metadata: ModelMetadata, image: bytes, top_k: int
    ) -> messages.Prediction | ServingError:
        self._pending += 1
        try:
            with served.counting_failures():
                loop = asyncio.get_running_loop()
                prepared = await loop.run_in_executor(self._pool, self._prepare, image, metadata.input)
                names = ("logits", "theta") if metadata.transformers else ("logits",)
                answer = await served.run(ValidRequest({"image": prepared.pixels[None]}, names, 1))
            return await loop.run_in_executor(self._pool, describe, metadata, prepared, answer.outputs, top_k)
        except ServingError as error:
            return error
        except Exception:
            logger.exception("an image for model '%s' could not be answered", served.model.name)
            return ServingError("internal error; the server's log tells more")
        finally:
            self._pending -= 1

    def _prepare(self, data: bytes, target: InputImage) -> Prepared:
        image = decode(data, target.color, self._limits)
        pixels, box = fit(image, target)
        return Prepared(pixels, box, image.shape[1], image.shape[0])


def describe(metadata: ModelMetadata, prepared: Prepared, outputs: dict[str, Array], top_k: int) -> messages.Prediction:
    """One row of logits and theta in the caller's terms: labels, probabilities, pixels of the image as it was sent.

    Raises:
        ModelFailure: the logits are not finite.
    """
    box = prepared.box
    return messages.Prediction(
        image_width=prepared.width,
        image_height=prepared.height,
        classes=_classes(metadata.labels, outputs["logits"][0], top_k),
        transforms=[
            _transform(metadata, transformer, theta, box)
            for transformer, theta in zip(metadata.transformers, outputs.get("theta", [()])[0], strict=True)
        ],
        input_box=messages.Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom),
    )


def _image_metadata(served: ServedModel) -> ModelMetadata:
    model, metadata = served.model, served.model.metadata
    if metadata is None:
        raise InvalidRequest(
            f"model '{model.name}' cannot be asked with images: its ONNX file has no 'stn' metadata. "
            f"Send it tensors: ModelInfer, or POST /v2/models/{model.name}/infer"
        )
    if metadata.task != "classification" or metadata.transform == "affine_3d":
        kind = metadata.transform if metadata.task == "classification" else metadata.task
        raise Unsupported(f"model '{model.name}' cannot be asked with images: {kind} is not supported, send it tensors")
    return metadata


def _result(outcome: messages.Prediction | ServingError) -> messages.ImageResult:
    if isinstance(outcome, messages.Prediction):
        return messages.ImageResult(prediction=outcome)
    return messages.ImageResult(error=messages.ImageError(code=outcome.grpc_code.value[0], message=str(outcome)))


def _classes(labels: Sequence[str], logits: Array, top_k: int) -> list[messages.ClassProbability]:
    if not np.isfinite(logits).all():
        raise ModelFailure("the model's logits are not finite")
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    return [
        messages.ClassProbability(index=index, label=labels[index], probability=probabilities[index]) for index in best
    ]


def _transform(metadata: ModelMetadata, transformer: Transformer, theta: Array, box: poses.Box) -> messages.Transform:
    regularization = metadata.control_grid.regularization if metadata.control_grid else 0.0
    height, width = transformer.output_size
    transform = messages.Transform(
        name=transformer.name,
        kind=metadata.transform or "",
        place=transformer.place,
        theta=theta.ravel().tolist(),
        theta_shape=theta.shape,
        output_width=width,
        output_height=height,
        regularization=regularization,
    )
    if np.isfinite(theta).all():  # else there is nothing to draw, and the classes still stand
        transform.quad.extend(_points(poses.source_quad(theta, box, regularization)))
        transform.outline.extend(_points(poses.source_outline(theta, box, regularization)))
        transform.pose.CopyFrom(_pose(poses.pose(theta, box, regularization)))
    return transform


def _points(positions: Array) -> list[messages.Point]:
    return [messages.Point(x=x, y=y) for x, y in positions.tolist()]


def _pose(pose: poses.Pose) -> messages.Pose:
    return messages.Pose(
        rotation_degrees=pose.rotation_degrees,
        scale=pose.scale,
        shear=pose.shear,
        translation=pose.translation,
        determinant=pose.determinant,
        inside_ratio=pose.inside_ratio,
    )
