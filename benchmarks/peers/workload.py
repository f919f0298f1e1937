"""What the servers are given: one model, and one image for it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.grpc.service_pb2 import ModelInferRequest

from stn_serve.repository import read_config

JPEG_SIZE = (500, 375)
"""Of the encoded image, as large as the photographs of CUB-200-2011 are."""


@dataclass(frozen=True)
class Workload:
    """A model as `stn export` wrote it, and what it is asked."""

    name: str
    directory: Path

    @cached_property
    def config(self) -> ModelConfig:
        """Its `config.pbtxt`."""
        return read_config(self.directory)

    @property
    def onnx(self) -> Path:
        """The file that every server computes with."""
        return self.directory / "1" / "model.onnx"

    @property
    def max_batch_size(self) -> int:
        """Images of a batch."""
        return int(self.config.max_batch_size)

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """Noise: the cost of these networks does not depend on what they see."""
        return np.random.default_rng(0).integers(0, 256, tuple(self.config.input[0].dims), np.uint8)

    @cached_property
    def infer_request(self) -> ModelInferRequest:
        """The image as a tensor, for the Open Inference Protocol."""
        request = ModelInferRequest(model_name=self.name, raw_input_contents=[self.image.tobytes()])
        request.inputs.add(name="image", datatype="UINT8", shape=[1, *self.image.shape])
        return request

    @cached_property
    def jpeg(self) -> bytes:
        """A photograph's worth of an encoded image: smooth, as photographs are, so that its size is theirs."""
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()
