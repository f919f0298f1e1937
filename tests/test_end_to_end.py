"""The whole way: trained, exported, served, and asked by every client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from export.publishing import export_checkpoint
from stn_serve.server_process import ServerProcess, ServerProcessError
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import load_recipe
from training.train import CHECKPOINT, train

SMALL = ["data.source=scikit-learn", "model.width=4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned a little, so that its theta is no identity."""
    directory = tmp_path_factory.mktemp("run")
    train(load_recipe("demo_digits", [*SMALL, "training.epochs=3"]), directory, torch.device("cpu"))
    return directory / CHECKPOINT


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`stn serve` with that network."""
    repository = tmp_path_factory.mktemp("repository")
    export_checkpoint(checkpoint, repository, "digits")
    with ServerProcess(repository) as running:
        yield running


def expected(checkpoint: Checkpoint, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        logits, theta = checkpoint.build_network()(torch.from_numpy(images).movedim(-1, 1).float() / 255)
    assert theta is not None
    return logits.numpy(), theta.numpy()


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tritonclient_gets_what_pytorch_computes(
    server: ServerProcess, checkpoint: Path, protocol: str, rows: int
) -> None:
    images = np.random.default_rng(rows).integers(0, 256, (rows, 42, 42, 1)).astype(np.uint8)
    triton = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    tensor = triton.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    with triton.InferenceServerClient(getattr(server, protocol)) as client:
        result = client.infer("digits", [tensor])
    logits, theta = expected(load_checkpoint(checkpoint), images)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)
    np.testing.assert_allclose(result.as_numpy("theta"), theta, atol=1e-4)
    assert np.abs(theta - np.eye(2, 3)).max() > 1e-3


def test_demo_goes_all_the_way(tmp_path: Path) -> None:
    settings = [argument for setting in (*SMALL, "training.epochs=1") for argument in ("--set", setting)]
    command = [sys.executable, "-m", "stn_serve", "demo", "--output", str(tmp_path), *settings]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("scikit-learn digits", "Test error with", "without", "Parity", "stopped cleanly", "stn serve"):
        assert words in result.stdout
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 500
    assert (tmp_path / "model_repository" / "digits" / "1" / "model.onnx").exists()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerProcessError, match=r"did not become ready: .*repository"), ServerProcess(tmp_path):
        pass
