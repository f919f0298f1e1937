"""Our models for Triton's Python backend: the wheel that brings a real Triton has no ONNX Runtime backend."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

SHIM = '''
import json
import os
import sys
import time

import triton_python_backend_utils as backend

sys.path.append({packages!r})
import onnxruntime


class TritonPythonModel:
    """The model's ONNX file, in ONNX Runtime."""

    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        config = json.loads(args["model_config"])
        self.names = [output["name"] for output in config["output"]]
        self.delay_s = float(config["parameters"].get("delay_s", {{"string_value": "0"}})["string_value"])

    def execute(self, requests):
        time.sleep(self.delay_s)
        return [self.answer(backend.get_input_tensor_by_name(request, "image").as_numpy()) for request in requests]

    def answer(self, images):
        outputs = self.session.run(self.names, {{"image": images}})
        return backend.InferenceResponse([backend.Tensor(*pair) for pair in zip(self.names, outputs)])
'''


def wrap(directory: Path, shims: Path, config: str = "") -> Path:
    """The same model for Triton's Python backend; `config` is added, such as the parameter `delay_s` of each batch."""
    copied = shims / directory.name
    shutil.copytree(directory, copied)
    path = copied / "config.pbtxt"
    text = path.read_text().replace('backend: "onnxruntime"', 'backend: "python"')
    path.write_text(f"{text}\n{config}\n")
    for file in copied.glob("*/model.onnx"):
        file.with_name("model.py").write_text(SHIM.format(packages=sysconfig.get_path("purelib")))
    return copied


ECHO = """
import triton_python_backend_utils as backend


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(backend.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def answer(self, array):
        return backend.InferenceResponse([backend.Tensor("y", array)])
"""

ECHO_CONFIG = """
backend: "python"
max_batch_size: 4
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


def publish_echo(repository: Path, name: str, config: str = ECHO_CONFIG, version: int = 1) -> None:
    """A model for Triton alone whose output `y` is its input `x`."""
    directory = repository / name / str(version)
    directory.mkdir(parents=True)
    directory.with_name("config.pbtxt").write_text(config)
    (directory / "model.py").write_text(ECHO)
