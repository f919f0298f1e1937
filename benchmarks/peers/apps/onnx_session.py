"""The model for the other servers, with the threads and options that `stn serve` gives it."""

import json
import os

import numpy as np
import onnxruntime


class Session:
    """An ONNX file, its input from bytes and its outputs as lists."""

    def __init__(self):
        self.shape = json.loads(os.environ["IMAGE_SHAPE"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=providers)

    def run(self, images):
        """Arrays by name, of a batch."""
        return dict(zip(("logits", "theta"), self.session.run(["logits", "theta"], {"image": images}), strict=True))

    def answer(self, tensors):
        """For each image of a batch, which are bytes, an object for JSON."""
        images = np.frombuffer(b"".join(tensors), np.uint8).reshape(-1, *self.shape)
        logits, theta = (array.tolist() for array in self.run(images).values())
        return [{"logits": one, "theta": other} for one, other in zip(logits, theta, strict=True)]
