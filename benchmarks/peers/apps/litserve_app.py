"""The model in LitServe."""

import base64
import os

import litserve
from onnx_session import Session


class Api(litserve.LitAPI):
    """An image's bytes in base64, since LitServe takes JSON and forms."""

    def setup(self, device):
        """In the worker process."""
        self.session = Session()

    def decode_request(self, request):
        """One caller's."""
        return base64.b64decode(request["image"])

    def batch(self, inputs):
        """Bytes that become one array at once."""
        return inputs

    def predict(self, images):
        """A batch; a single image where LitServe has no more."""
        return self.session.answer(images)

    def unbatch(self, output):
        """To each its own."""
        return output

    def encode_response(self, output):
        """As JSON."""
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=int(os.environ["MAX_BATCH_SIZE"]), batch_timeout=float(os.environ["BATCH_TIMEOUT_S"]))
    server = litserve.LitServer(api, accelerator="cpu", fast_queue=os.environ["FAST_QUEUE"] == "1")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
