"""House numbers all the way: exported with parity, served, and answered as text with every transformer's quad."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export.publishing import export_checkpoint
from export.targets import Target
from stn_serve import Client
from stn_serve.server_process import ServerProcess
from training.checkpoint import Checkpoint, build_network, load_checkpoint, save_checkpoint
from training.config import load_recipe
from training.train import load_data

SMALL = ["data.size=32", "data.handwriting=scikit-learn", "data.train_images=64", "data.test_images=16"]
NETWORKS = {
    "single": ["model.transformers=single", "model.width=0.1"],
    "multi": ["model.transformers=multi", "model.width=0.35"],
    "modern": ["model.network=modern", "model.width=0.2"],
}


def write_checkpoint(path: Path, settings: list[str]) -> None:
    """An untrained network whose transformers do not look at the identity."""
    recipe = load_recipe("house_numbers_table", [*SMALL, *settings, "model.head_std=0.03"])
    data = load_data(recipe, torch.device("cpu"))
    torch.manual_seed(3)
    network = build_network(recipe, data.input_size, len(data.labels))
    checkpoint = Checkpoint(
        recipe=recipe,
        labels=data.labels,
        input_size=data.input_size,
        epoch=1,
        model=network.state_dict(),
        optimizer={},
        data_source=data.source,
        data_sha256=data.sha256,
        metrics={},
    )
    save_checkpoint(checkpoint, path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, settings in NETWORKS.items():
        write_checkpoint(folder / f"{name}.pt", settings)
    return {name: folder / f"{name}.pt" for name in NETWORKS}


@pytest.fixture(scope="module")
def server(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("repository")
    for name, checkpoint in checkpoints.items():
        export_checkpoint(checkpoint, repository, name)
        assert (repository / name / "labels.txt").read_text().split("\n") == [*"0123456789", "", ""]
    with ServerProcess(repository) as running:
        yield running


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_is_answered_as_text_with_quads(
    server: ServerProcess, checkpoints: dict[str, Path], name: str, protocol: str
) -> None:
    image = Image.fromarray(np.random.default_rng(7).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    network = load_checkpoint(checkpoints[name]).build_network()
    with torch.no_grad():
        logits, theta = network(torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 255)
    assert theta is not None
    best = logits[0].softmax(-1).max(-1)
    address = server.grpc if protocol == "grpc" else f"http://{server.http}"
    with Client(address) as client:
        prediction = client.predict(image, model=name, top_k=3)
    assert prediction.label == "".join("" if index == 10 else str(index) for index in best.indices.tolist())
    assert prediction.probability == pytest.approx(prod(best.values.tolist()), rel=1e-3)
    assert len(prediction.positions) == 5
    assert [len(position.labels) for position in prediction.positions] == [3] * 5
    places = ["image"] if name == "single" else ["image", "conv2", "conv3", "conv4"]
    assert [look.place for look in prediction.transforms] == (["image"] * 4 if name == "modern" else places)
    for look, expected in zip(prediction.transforms, theta[0].numpy(), strict=True):
        np.testing.assert_allclose(look.theta, expected, atol=1e-4)
        corners = np.array([[-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]]) @ expected.T
        np.testing.assert_allclose(np.sort(look.quad, axis=0), np.sort((corners + 1) * 16, axis=0), atol=0.05)
    assert np.abs(theta.numpy() - np.eye(2, 3)).max() > 1e-3


def test_a_number_of_no_digits_is_an_empty_text(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """All five positions say that nothing stands there: the label is empty, and its probability that of five nulls."""
    checkpoint = load_checkpoint(checkpoints["single"])
    last = next(name for name, weights in checkpoint.model.items() if weights.shape == (5 * 11,))
    bias = torch.zeros(5, 11)
    bias[:, 10] = 50
    checkpoint.model[last].copy_(bias.flatten())
    save_checkpoint(checkpoint, tmp_path / "null.pt")
    export_checkpoint(tmp_path / "null.pt", tmp_path / "repository", "null")
    with ServerProcess(tmp_path / "repository") as server, Client(server.grpc) as client:
        prediction = client.predict(Image.new("RGB", (40, 30), "gray"), model="null")
    assert prediction.label == ""
    assert prediction.probability > 0.99


def samplers(file: Path) -> int:
    return sum(node.op_type == "GridSample" for node in onnx.load(file).graph.node)


def test_feature_maps_are_sampled_by_pixel_on_cpus_alone(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for engine, expected in (("cpu", 1), ("cuda", 4)):
        published = export_checkpoint(checkpoints["multi"], tmp_path, engine, target=Target.parse(engine))
        assert samplers(published.path / "model.onnx") == expected, "one of the four samples the image"
        assert (published.path / "parity.png").exists()
