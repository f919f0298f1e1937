"""The model in BentoML."""

import base64
import os

import bentoml
from onnx_session import Session


@bentoml.service(workers=1)
class Model:
    """Images' bytes in base64: arrays would be JSON's lists of numbers, which take longer."""

    def __init__(self):
        self.session = Session()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["MAX_BATCH_SIZE"]))
    def predict(self, images: list[str]) -> list[dict]:
        """A batch of several callers' images."""
        return self.session.answer([base64.b64decode(image) for image in images])
