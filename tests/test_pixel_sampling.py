"""Against ONNX Runtime's own GridSample, and against torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.pixel_sampling import MIN_CHANNELS, sample_by_pixel, sampled

Array = NDArray[np.float32]
DEFAULTS = {"mode": "bilinear", "padding_mode": "border", "align_corners": 0}


def write(path: Path, image: tuple[int, ...], size: tuple[int, int], **attributes: Any) -> None:
    node = helper.make_node("GridSample", ["maps", "grid"], ["warped"], "look", **{**DEFAULTS, **attributes})
    maps, grid, warped = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("maps", image), ("grid", (*size, 2)), ("warped", (image[0], *size)))
    )
    graph = helper.make_graph([node], "sampling", [maps, grid], [warped])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def run(path: Path, maps: Array, grid: Array) -> Array:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["warped"], {"maps": maps, "grid": grid})[0])


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    image=st.tuples(st.integers(MIN_CHANNELS, 20), st.integers(2, 9), st.integers(2, 9)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    reach=st.sampled_from([0.5, 1.0, 1.5, 1e4]),
    seed=st.integers(0, 100),
)
def test_it_is_what_gridsample_computes(
    tmp_path_factory: pytest.TempPathFactory,
    batch: int,
    image: tuple[int, int, int],
    size: tuple[int, int],
    reach: float,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    random = np.random.default_rng(seed)
    maps = random.standard_normal((batch, *image)).astype(np.float32)
    grid = random.uniform(-reach, reach, (batch, *size, 2)).astype(np.float32)
    write(path, image, size)
    expected = run(path, maps, grid)
    assert sample_by_pixel(path) == 1
    found = run(path, maps, grid)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    reference = torch.nn.functional.grid_sample(
        torch.from_numpy(maps), torch.from_numpy(grid), padding_mode="border", align_corners=False
    )
    np.testing.assert_allclose(found, reference.numpy(), atol=2e-5)


def test_the_edges_of_the_image_are_its_own_pixels(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, (16, 5, 4), (5, 4))
    assert sample_by_pixel(path) == 1
    rows, columns = (np.arange(5) * 2 + 1) / 5 - 1, (np.arange(4) * 2 + 1) / 4 - 1
    grid = np.stack(np.meshgrid(columns, rows), axis=-1)[None].astype(np.float32)
    maps = np.random.default_rng(0).standard_normal((1, 16, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(path, maps, grid), maps, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "attributes"),
    [
        ((MIN_CHANNELS - 1, 5, 4), {}),
        ((16, 1, 4), {}),
        ((16, 5, 4), {"mode": "nearest"}),
        ((16, 5, 4), {"padding_mode": "zeros"}),
        ((16, 5, 4), {"align_corners": 1}),
    ],
    ids=["few channels", "a single row", "nearest", "zeros", "aligned corners"],
)
def test_what_it_would_not_speed_up_or_not_do_right_it_leaves_alone(
    tmp_path: Path, image: tuple[int, int, int], attributes: dict[str, object]
) -> None:
    path = tmp_path / "model.onnx"
    write(path, image, (3, 3), **attributes)
    before = path.read_bytes()
    assert sample_by_pixel(path) == 0
    assert path.read_bytes() == before


def test_what_samplers_yield_is_found_either_way(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, (16, 5, 4), (3, 3))
    assert sampled(onnx.load(path).graph) == ["warped"]
    sample_by_pixel(path)
    assert sampled(onnx.load(path).graph) == ["warped"]
