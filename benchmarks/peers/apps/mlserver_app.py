"""The model in MLServer."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from onnx_session import Session


class OnnxModel(MLModel):
    """A custom runtime; MLServer merges the requests of a batch before, and parts the answer after."""

    async def load(self):
        """In the worker process."""
        self.session = Session()
        return True

    async def predict(self, payload):
        """A batch."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        outputs = [NumpyCodec.encode_output(name, array) for name, array in self.session.run(images).items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)
