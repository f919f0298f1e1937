"""Networks by other people, through `stn export --model`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from export.description import ExportError, describe
from export.foreign import ForeignNetwork, from_factory
from export.graph_contract import GraphError, SamplerAttributes
from export.onnx_export import export_onnx
from export.publishing import publish
from stn_serve.model import Model
from stn_serve.registry import ModelRegistry
from training.stn import (
    Affine,
    Attention,
    FullyConnectedLocalization,
    ParallelSpatialTransformer,
    SpatialTransformer,
    tile,
)

SIDE = 8


class Tutorial(nn.Module):
    """As tutorials write it, with the other `align_corners`; answers logits and theta."""

    def __init__(self, answer: Callable[[Tensor, Tensor], object] = lambda logits, theta: (logits, theta)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.answer = answer
        self.localization = nn.Linear(SIDE * SIDE, 6)
        self.classifier = nn.Linear(SIDE * SIDE, 3)

    def forward(self, images: Tensor) -> object:
        theta = self.localization(images.flatten(1)).reshape(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=True)
        warped = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
        return self.answer(self.classifier(warped.flatten(1)), theta)


class WithOurs(nn.Module):
    """Answers logits alone; a transformer on the image, and two side by side on features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        reduce = FullyConnectedLocalization((1, SIDE, SIDE), (8,))
        self.front = SpatialTransformer(reduce, Affine((SIDE, SIDE)))
        self.convolution = nn.Conv2d(1, 2, 3, padding=1)
        looks = FullyConnectedLocalization((2, SIDE, SIDE), (8,))
        self.inner = SpatialTransformer(looks, Affine((4, 4)))
        self.classifier = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        warped, _ = self.front(images)
        warped, _ = self.inner(torch.relu(self.convolution(warped)))
        logits: Tensor = self.classifier(warped.flatten(1))
        return logits


class Parallel(nn.Module):
    """Answers logits alone, of two looks."""

    def __init__(self) -> None:
        super().__init__()
        transform = Attention((4, 4))
        reduce = FullyConnectedLocalization((1, SIDE, SIDE), (8,))
        self.looks = ParallelSpatialTransformer(reduce, transform, tile(transform, 2))
        self.classifier = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.looks(images)[0].flatten(1))
        return logits


class Plain(nn.Module):
    """No transformer; what it does with features is given."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change
        self.classifier = nn.Linear(SIDE * SIDE, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.classifier(images.flatten(1)))


def tutorial() -> nn.Module:
    return Tutorial()


def with_ours() -> nn.Module:
    return WithOurs()


def parallel() -> nn.Module:
    return Parallel()


def not_a_module() -> int:
    return 3


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("build", "names", "places"),
    [
        (tutorial, ["transformer1"], ["unknown"]),
        (with_ours, ["front", "inner"], ["image", "inside"]),
        (parallel, ["looks_0", "looks_1"], ["image", "image"]),
    ],
)
def test_it_is_proven_published_and_served(
    build: Callable[[], nn.Module], names: list[str], places: list[str], example: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": build().state_dict()}, tmp_path / "weights.pt")
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    source = from_factory(f"test_foreign:{build.__name__}", tmp_path / "weights.pt", [example], tmp_path / "labels.txt")
    published = publish(source, tmp_path / "models", "foreign", max_batch_size=8)
    assert published.parity.failures == []
    assert published.measurement is None
    model = ModelRegistry.load(tmp_path / "models").find("foreign").model
    assert model.metadata is not None
    assert model.labels == ("ant", "bee", "cat")
    assert [transformer.name for transformer in model.metadata.transformers] == names
    assert [transformer.place for transformer in model.metadata.transformers] == places
    assert isinstance(model, Model)
    answer = model.run({"image": source.examples(1)})
    assert answer["theta"].shape[:2] == (1, len(names))


def test_what_its_samplers_do_is_asserted(tmp_path: Path) -> None:
    network = ForeignNetwork(Tutorial(), (1, SIDE, SIDE))
    contract = export_onnx(network, "abc", tmp_path / "model.onnx")
    expected = SamplerAttributes(mode="bilinear", padding="reflection", align_corners=True)
    assert contract.samplers == {expected}


@pytest.mark.parametrize(
    "answer",
    [lambda logits, theta: {"logits": logits, "theta": theta}, lambda logits, theta: (logits, theta.unsqueeze(1))],
    ids=["dictionary", "axis"],
)
def test_other_ways_to_answer(answer: Callable[[Tensor, Tensor], object]) -> None:
    network = ForeignNetwork(Tutorial(answer), (1, SIDE, SIDE))
    assert describe(network, "abc").outputs == {"logits": (3,), "theta": (1, 2, 3)}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Tutorial(lambda logits, theta: [logits, theta, theta]), "answers list, expected logits"),
        (Tutorial(lambda logits, _: {"scores": logits}), "answers keys scores, expected logits"),
        (Tutorial(lambda logits, theta: (logits, theta[:, :1])), r"theta has shape \[2, 1, 1, 3\], expected one of"),
        (Plain(lambda logits: logits[:, :2]), r"logits have shape \[2, 2\], expected \[N, 3\]"),
        (Plain(lambda logits: logits[0]), r"logits have shape \[3\], expected"),
        (nn.Linear(5, 3), r"the network fails on images \[2, 1, 8, 8\]: mat1 and mat2 shapes"),
        (Plain(lambda logits: logits.reshape(2, 3)), "the batch size would be frozen"),
        (Plain(lambda logits: logits if logits.sum() > 3 else 2 * logits), "depends on what the image shows"),
        (
            Plain(lambda logits: logits @ torch.linalg.inv(torch.eye(3) + logits[:1].T @ logits[:1])),
            "nothing for aten.l",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(
    module: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(ForeignNetwork(module, (1, SIDE, SIDE)), "abc", tmp_path / "model.onnx")
    assert "Traceback" not in capfd.readouterr().err


def test_control_flow_in_the_graph_is_refused(tmp_path: Path) -> None:
    def loop(logits: Tensor) -> Tensor:
        chosen: Tensor = torch.cond(logits.sum() > 3, lambda x: x + 1, lambda x: x * 2, (logits,))
        return chosen

    with pytest.raises(GraphError, match="If, which has control flow"):
        export_onnx(ForeignNetwork(Plain(loop), (1, SIDE, SIDE)), "abc", tmp_path / "model.onnx")


class Danger:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (print, ("code in a checkpoint was run",))


def test_what_does_not_fit_is_named(example: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, bad, code = (tmp_path / name for name in ("weights.pt", "bad.pt", "code.pt"))
    torch.save(Tutorial().state_dict(), weights)
    torch.save([1, 2], bad)
    code.write_bytes(pickle.dumps(Danger()))
    other = tmp_path / "other.png"
    Image.new("RGB", (5, 6)).save(other)
    cases: list[tuple[str, Path, list[Path], str]] = [
        ("nonsense", weights, [example], "expected package.module:function, got 'nonsense'"),
        ("no_such_module:build", weights, [example], "'no_such_module' cannot be imported"),
        ("test_foreign:nothing", weights, [example], "has no function 'nothing'"),
        ("test_foreign:not_a_module", weights, [example], "gives a int, expected a torch.nn.Module"),
        ("test_foreign:parallel", weights, [example], "does not fit the network: .*Missing key"),
        ("test_foreign:tutorial", tmp_path / "gone.pt", [example], "there is no checkpoint"),
        ("test_foreign:tutorial", bad, [example], "is not a state dict"),
        ("test_foreign:tutorial", code, [example], "cannot be read without running code in it"),
        ("test_foreign:tutorial", weights, [], "give an image of the size"),
        ("test_foreign:tutorial", weights, [weights], "cannot be read as an image"),
        ("test_foreign:tutorial", weights, [example, other], "all must have one size and colour"),
        ("test_foreign:tutorial", weights, [other], r"the network fails on images \[2, 3, 6, 5\]"),
    ]
    for factory, checkpoint, examples, message in cases:
        with pytest.raises(ExportError, match=message):
            from_factory(factory, checkpoint, examples)
    assert "was run" not in capsys.readouterr().out


def test_other_precisions_need_a_data_set(example: Path, tmp_path: Path) -> None:
    torch.save(Tutorial().state_dict(), tmp_path / "weights.pt")
    source = from_factory("test_foreign:tutorial", tmp_path / "weights.pt", [example])
    assert source.labels == ("0", "1", "2")
    with pytest.raises(ExportError, match="int8: needs a data set to measure what it costs"):
        publish(source, tmp_path / "models", "foreign", precision="int8")
    assert not (tmp_path / "models").exists()
