from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_models import VISION_CONFIG, VISION_METADATA, build, publish, vision
from torch.nn import functional as F

from stn_serve import canary
from stn_serve.canary import Sampling, bright_pixel, graph, samplings, shifted_grid, verify
from stn_serve.errors import ConfigurationError
from stn_serve.model import Model
from stn_serve.repository import read_config

MODES = {18: ("bilinear", "nearest", "bicubic"), 20: ("linear", "nearest", "cubic"), 22: ("linear", "nearest", "cubic")}
KINDS = [
    Sampling(opset, mode, padding_mode, align_corners, axes)
    for opset, modes in MODES.items()
    for mode, padding_mode, align_corners, axes in product(
        modes, ("zeros", "border", "reflection"), (False, True), (2, 3)
    )
    if not (axes == 3 and (opset < 20 or mode == "cubic"))
]


def sampled(model: bytes, sampling: Sampling) -> NDArray[np.float32]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    inputs = {"image": bright_pixel(sampling.axes), "grid": shifted_grid(sampling)}
    [result] = session.run(None, inputs)
    return np.asarray(result, np.float32)


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_a_runtime_that_samples_as_told_passes(sampling: Sampling) -> None:
    verify(sampling, sampled(graph(sampling), sampling), "here")


@pytest.mark.parametrize("sampling", KINDS, ids=str)
def test_the_graph_is_valid_onnx_and_read_back(sampling: Sampling, tmp_path: Path) -> None:
    onnx.checker.check_model(onnx.load_from_string(graph(sampling)), full_check=True)
    (tmp_path / "model.onnx").write_bytes(graph(sampling))
    assert samplings(tmp_path / "model.onnx", sampling.axes) == [sampling]


@pytest.mark.parametrize("sampling", [kind for kind in KINDS if kind.mode != "nearest"], ids=str)
def test_a_runtime_that_samples_nearest_by_mistake_is_refused(sampling: Sampling) -> None:
    mistaken = graph(sampling._replace(mode="nearest"))
    with pytest.raises(ConfigurationError, match=f"here would answer wrongly: .* '{sampling.mode}'.* samples nearest"):
        verify(sampling, sampled(mistaken, sampling), "here")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_torch_samples_the_same(mode: str) -> None:
    sampling = Sampling(18, mode, "zeros", False, 2)
    image, grid = torch.from_numpy(bright_pixel(2)), torch.from_numpy(shifted_grid(sampling))
    verify(sampling, F.grid_sample(image, grid, mode=mode, align_corners=False).numpy(), "torch")


@pytest.mark.parametrize("change", [{"align_corners": True}, {"mode": "cubic"}])
def test_other_mistakes_are_refused(change: dict[str, bool | str]) -> None:
    sampling = Sampling(20, "linear", "zeros", False, 2)
    other = sampling._replace(**change)  # type: ignore[arg-type]  # each has its type
    with pytest.raises(ConfigurationError, match=r"the runtime errs by 0\.\d+ a quarter of a pixel"):
        verify(sampling, sampled(graph(other), sampling), "here")


def with_sampler(mode: str) -> onnx.ModelProto:
    """The model `vision`, which also looks at its image through a sampler and forgets what it sees."""
    model = vision()
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("GridSample", ["planes", "grid"], ["crop"], mode=mode),
        helper.make_node("ReduceMean", ["crop", "axes"], ["unused"], keepdims=0),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 4, 4, 2), np.float32), "grid"))
    return model


def load(repository: Path, model: onnx.ModelProto) -> Model:
    directory = publish(repository, "vision", model, VISION_CONFIG)
    return Model.load(directory, 1, read_config(directory))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_model_with_samplers_is_loaded(tmp_path: Path, mode: str) -> None:
    assert load(tmp_path, with_sampler(mode)).metadata == VISION_METADATA


def test_a_model_on_a_runtime_that_samples_nearest_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime is ONNX Runtime, told what TensorRT makes of the node."""
    told = canary.graph
    monkeypatch.setattr(canary, "graph", lambda sampling: told(sampling._replace(mode="nearest")))
    with pytest.raises(ConfigurationError, match="model 'vision' on CPUExecutionProvider would answer wrongly"):
        load(tmp_path, with_sampler("bilinear"))


def test_samplers_in_branches_are_found(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("crop", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("GridSample", ["x", "grid"], ["crop"])], "branch", [], [value])
    model = build(
        [helper.make_node("If", ["condition"], ["crop"], then_branch=branch, else_branch=branch)], [], [value]
    )
    onnx.save(model, tmp_path / "model.onnx")
    assert samplings(tmp_path / "model.onnx", 2) == [Sampling(18, "bilinear", "zeros", False, 2)]
