"""The model for Triton's Python backend: the requests that Triton hands over together are one batch."""

import json
import sys
from pathlib import Path

import triton_python_backend_utils as backend  # isort: skip - puts its own numpy in place

import numpy as np


class TritonPythonModel:
    """The model's ONNX file, in ONNX Runtime."""

    def initialize(self, args):
        """Load the model with the packages and threads that the configuration names."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        sys.path.append(parameters["packages"])
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["intra_op_threads"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [output["name"] for output in config["output"]]

    def execute(self, requests):
        """One run for all requests."""
        images = [backend.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        outputs = self.session.run(self.names, {"image": images[0] if len(images) == 1 else np.concatenate(images)})
        responses, first = [], 0
        for rows in map(len, images):
            tensors = [
                backend.Tensor(name, output[first : first + rows])
                for name, output in zip(self.names, outputs, strict=True)
            ]
            responses.append(backend.InferenceResponse(tensors))
            first += rows
        return responses
