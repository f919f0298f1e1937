from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_networks import NETWORKS, Exported, SmallNetwork, export, exported, node, parity, set_attribute

from export.graph_contract import GraphError
from export.parity import TOLERANCES, ParityError, ParityReport
from training.stn import Affine

FORCED = ("half_pixel", "far", "out_of_range", "non_finite")


@pytest.mark.parametrize("name", NETWORKS)
def test_an_honest_export_passes(name: str, tmp_path: Path) -> None:
    report = parity(exported(name), tmp_path)
    assert report.failures == []
    assert {row.check for row in report.rows} == {"real", "noise", *(FORCED if name != "none" else ())}
    assert {row.batch for row in report.rows} == {1, 2, 7, 9}
    assert {row.output for row in report.rows} == ({"logits"} if name == "none" else {"logits", "theta"})
    assert max(row.max_absolute for row in report.rows) < 1e-5


@pytest.fixture(scope="module")
def still() -> Exported:
    """A network that starts at the identity, as every one does, with an output as large as its input."""
    return export(SmallNetwork(Affine((14, 12)), head_std=0.0))


def to_nearest(model: onnx.ModelProto) -> None:
    set_attribute(node(model, "GridSample"), "mode", "nearest")


def to_aligned_corners(model: onnx.ModelProto) -> None:
    set_attribute(node(model, "GridSample"), "align_corners", 1)


def to_zeros(model: onnx.ModelProto) -> None:
    set_attribute(node(model, "GridSample"), "padding_mode", "zeros")


def to_swapped_axes(model: onnx.ModelProto) -> None:
    """As a grid of (y, x) would."""
    along = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("along"))
    swapped = numpy_helper.to_array(along).reshape(6, -1, 2)[:, :, ::-1].reshape(6, -1)
    along.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(swapped), along.name))


def to_half_grid(model: onnx.ModelProto) -> None:
    sample = node(model, "GridSample")
    casts = [
        helper.make_node("Cast", [sample.input[1]], ["rounded"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["rounded"], ["grid"], to=TensorProto.FLOAT),
    ]
    sample.input[1] = "grid"
    index = list(model.graph.node).index(sample)
    for cast in reversed(casts):
        model.graph.node.insert(index, cast)


def to_no_guard_against_nan(model: onnx.ModelProto) -> None:
    where, clip = node(model, "Where"), node(model, "Clip")
    clip.input[0] = where.input[2]


def to_no_clamp(model: onnx.ModelProto) -> None:
    clip = node(model, "Clip")
    del clip.input[1:]


def to_one_theta_for_all(model: onnx.ModelProto) -> None:
    """The whole batch is warped with its first theta."""
    product = node(model, "MatMul")
    constants = {"first": np.array([0]), "grid_shape": np.array([0, -1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("Gather", [product.input[0], "first"], ["only"], axis=0),
        helper.make_node("Sub", [product.input[0], product.input[0]], ["nothing"]),
        helper.make_node("Add", ["nothing", "only"], ["repeated"]),
    ]
    index = list(model.graph.node).index(product)
    product.input[0] = "repeated"
    for added in reversed(nodes):
        model.graph.node.insert(index, added)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (to_nearest, "half_pixel"),
        (to_swapped_axes, "half_pixel"),
        (to_aligned_corners, "half_pixel"),
        (to_zeros, "far"),
        (to_no_clamp, "out_of_range"),
        (to_no_guard_against_nan, "non_finite"),
    ],
)
def test_a_broken_export_is_caught_by_name(
    still: Exported, damage: Callable[[onnx.ModelProto], None], check: str, tmp_path: Path
) -> None:
    broken = still.copy()
    damage(broken)
    failures = parity(still, tmp_path, broken).failures
    assert any(failure.startswith(f"{check} (batch") for failure in failures), failures


def test_identity_alone_would_not_tell_nearest_from_bilinear(still: Exported, tmp_path: Path) -> None:
    broken = still.copy()
    to_nearest(broken)
    failed = {failure.split()[0] for failure in parity(still, tmp_path, broken).failures}
    assert "half_pixel" in failed
    assert not failed & {"real", "noise"}


def test_a_batch_warped_with_its_first_theta_is_caught(tmp_path: Path) -> None:
    broken = exported("affine").copy()
    to_one_theta_for_all(broken)
    rows = parity(exported("affine"), tmp_path, broken).rows
    failed = {(row.check, row.batch) for row in rows if row.failure}
    assert failed == {(check, batch) for check in ("real", "noise") for batch in (2, 7, 9)}


def test_a_grid_in_half_precision_is_caught_on_a_large_image(tmp_path: Path) -> None:
    large = export(SmallNetwork(Affine((448, 448)), input_size=(1, 448, 448)))
    assert parity(large, tmp_path).failures == []
    broken = large.copy()
    to_half_grid(broken)
    report = parity(large, tmp_path, broken)
    assert any(failure.startswith("noise") for failure in report.failures)
    assert any(failure.startswith("half_pixel") for failure in report.failures)


def test_a_theta_that_is_off_is_told_in_pixels(tmp_path: Path) -> None:
    broken = exported("affine").copy()
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "transformer.head.bias")
    moved = numpy_helper.to_array(bias) + np.array([0, 0, 0.5, 0, 0, 0], np.float32)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    report = parity(exported("affine"), tmp_path, broken)
    row = next(row for row in report.worst() if (row.check, row.output) == ("real", "theta"))
    assert row.max_absolute == pytest.approx(0.5, abs=1e-6)
    assert row.displacement_px == pytest.approx(0.5 / 2 * 12, abs=1e-4)
    assert "moves a corner by 3 px, 0.01 allowed" in row.failure


def test_outputs_that_are_not_numbers_fail(tmp_path: Path) -> None:
    broken = exported("none").copy()
    bias = next(tensor for tensor in broken.graph.initializer if tensor.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    report = parity(exported("none"), tmp_path, broken)
    assert [failure.split(":")[0] for failure in report.failures] == ["real (batch 1)", "noise (batch 1)"]


def test_a_graph_whose_theta_cannot_be_forced_is_refused(tmp_path: Path) -> None:
    broken = exported("affine").copy()
    for tensor in broken.graph.initializer:
        if tensor.name == "transformer.head.weight":
            tensor.name = "renamed"
    for each in broken.graph.node:
        each.input[:] = ["renamed" if name == "transformer.head.weight" else name for name in each.input]
    with pytest.raises(GraphError, match=r"one Gemm with 'transformer.head.weight', to force its theta, found none"):
        parity(exported("affine"), tmp_path, broken)


def test_the_report_as_json(tmp_path: Path) -> None:
    report = parity(exported("affine"), tmp_path)
    document = json.loads(report.to_json())
    assert document["passed"] is True
    assert document["precision"] == "fp32"
    assert document["tolerance"]["error"] == TOLERANCES["fp32"].error
    assert len(document["rows"]) == 6 * 4 * 2
    assert document["rows"][0]["top_class_agreement"] == 1.0


def test_the_worst_row_is_one_that_failed(tmp_path: Path) -> None:
    rows = parity(exported("none"), tmp_path).rows
    failed = replace(rows[0], max_absolute=0.0, failure="real (batch 1): logits has the same top class for 0.0%")
    report = ParityReport(precision="fp32", rows=(failed, *rows[1:]))
    assert report.failures == [failed.failure]
    assert str(ParityError(report)) == f"the exported model does not compute what PyTorch does: {failed.failure}"
