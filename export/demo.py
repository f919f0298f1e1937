"""The command `stn demo`: the whole way, from images to answers.

It lives here because `export` is the one package that may know both training and serving.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from export.publishing import export_checkpoint
from stn_serve.client import Client
from stn_serve.drawing import contact_sheet
from stn_serve.prediction import Prediction
from stn_serve.server_process import ServerProcess
from training.checkpoint import Checkpoint
from training.cli import pick_device, run
from training.config import Recipe, load_recipe
from training.data.loading import DataSet
from training.train import CHECKPOINT, load_data

RECIPE = "demo_digits"
NAME = "digits"
IMAGES_ASKED = 8
TOLERANCE = 1e-4
"""Largest difference of theta or a probability between transports and PyTorch."""


class DemoError(ValueError):
    """Something that the demo shows does not hold."""


def demo(
    output: Annotated[Path, typer.Option(help="Where checkpoints, the model repository and demo.png go.")] = Path(
        "build/demo"
    ),
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe, such as training.epochs=2.")
    ] = None,
    restart: Annotated[bool, typer.Option(help="Train anew where an earlier demo has trained already.")] = False,
) -> None:
    """Train a spatial transformer on distorted digits, export it, serve it, and ask it what it sees and where it looks.

    About six minutes on two cores. Needs nothing but the installation: without MNIST and without a network it takes the
    digits that come with scikit-learn.

    Examples:
        stn demo

        stn demo --set training.epochs=2 --restart
    """
    console = Console(soft_wrap=True)
    device = pick_device("auto")
    with_transformer = load_recipe(RECIPE, settings or [])

    console.rule("1. Data")
    data = load_data(with_transformer, device)
    _explain(data, console)
    with_transformer = _fitted_to(with_transformer, data)
    without = with_transformer.changed(["name=demo_digits_plain", "model.transform=none", "model.supersample=1"])

    console.rule("2. Training, with a spatial transformer and without")
    directory = output / "with"
    checkpoint = _train(with_transformer, directory, restart, device, console)
    plain = _train(without, output / "without", restart, device, console)
    _compare(checkpoint, plain, console)

    console.rule("3. Export to ONNX, proven equal to PyTorch")
    repository = output / "model_repository"
    published = export_checkpoint(directory / CHECKPOINT, repository, NAME, console=console)

    console.rule("4. Serving")
    images, labels = _test_images(data)
    with ServerProcess(repository) as server:
        console.print(f"Ready: gRPC {server.grpc}, HTTP http://{server.http}, metrics http://{server.metrics}/metrics")
        predictions = _ask_everywhere(server, images, checkpoint, console)
    console.print("The server has stopped cleanly.")

    console.rule("5. Answers")
    console.print(_table(predictions, labels))
    _draw(images, predictions, output / "demo.png")
    _show_next(output, published.path, console)


def _explain(data: DataSet, console: Console) -> None:
    console.print(
        f"[bold]{data.source}[/]: {data.train_count:,} training digits, rotated by up to 45 degrees, scaled by 0.7 "
        "to 1.2 and placed anywhere on a 42x42 canvas, anew in every epoch (the paper's RTS set)."
    )
    if data.source != "MNIST":
        console.print(
            "MNIST was found neither in $STN_DATA_DIR nor on the network: the small 8x8 digits of scikit-learn stand "
            "in. Everything works the same, but errors are higher and cannot be compared with the paper's."
        )


def _fitted_to(recipe: Recipe, data: DataSet) -> Recipe:
    """As many steps on a small set as on MNIST: epochs make up for what is missing in images."""
    epochs = max(1, round(recipe.training.epochs * 60_000 / data.train_count))
    return recipe.changed([f"training.epochs={epochs}"])


def _train(recipe: Recipe, directory: Path, restart: bool, device: torch.device, console: Console) -> Checkpoint:
    if restart:
        (directory / CHECKPOINT).unlink(missing_ok=True)
    return run(recipe, directory, device, console)


def _compare(checkpoint: Checkpoint, plain: Checkpoint, console: Console) -> None:
    error, plain_error = checkpoint.metrics["error_percent"], plain.metrics["error_percent"]
    console.print(
        f"Test error with the spatial transformer [bold]{error:.2f} %[/], without [bold]{plain_error:.2f} %[/]: "
        "the same classifier, the same images, the same epochs."
    )
    if error >= plain_error:
        console.print("The transformer did not pay off in this run; it does when it is trained longer.")


def _test_images(data: DataSet) -> tuple[NDArray[np.uint8], list[str]]:
    images, targets = next(iter(data.test_batches()))
    pixels = (images[:IMAGES_ASKED].clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy()
    return pixels, [data.labels[target] for target in targets[:IMAGES_ASKED].tolist()]


def _ask_everywhere(
    server: ServerProcess, images: NDArray[np.uint8], checkpoint: Checkpoint, console: Console
) -> list[Prediction]:
    """Ask over gRPC, over HTTP and with NVIDIA's client; all must agree with PyTorch.

    Raises:
        DemoError: they do not.
    """
    pngs = [_png(image) for image in images]
    over_grpc = _ask(server.grpc, pngs)
    over_http = _ask(f"http://{server.http}", pngs)
    logits, theta = _ask_tritonclient(server.grpc, images)
    with torch.no_grad():
        network_input = torch.from_numpy(images).movedim(-1, 1).float() / 255
        expected = checkpoint.build_network()(network_input)
    differences = {
        "HTTP against gRPC": _difference(_thetas(over_http), _thetas(over_grpc)),
        "tritonclient against gRPC": _difference(theta, _thetas(over_grpc)),
        "tritonclient against PyTorch, theta": _difference(theta, expected.theta.numpy()),
        "tritonclient against PyTorch, logits": _difference(logits, expected.logits.numpy()),
    }
    for what, difference in differences.items():
        console.print(f"{what}: largest difference {difference:.1e}")
        if not difference <= TOLERANCE:
            raise DemoError(f"{what}: they differ by {difference:.1e}, more than {TOLERANCE}; please report this")
    return over_grpc


def _ask(address: str, pngs: list[bytes]) -> list[Prediction]:
    with Client(address) as client:
        return [client.predict(png, model=NAME) for png in pngs]


def _ask_tritonclient(address: str, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(address) as client:
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        result = client.infer(NAME, [tensor])
        return result.as_numpy("logits"), result.as_numpy("theta")


def _thetas(predictions: list[Prediction]) -> NDArray[np.float32]:
    return np.stack([[transform.theta for transform in p.transforms] for p in predictions]).astype(np.float32)


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max())


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "png")
    return buffer.getvalue()


def _table(predictions: list[Prediction], labels: list[str]) -> Table:
    table = Table("true", "answer", "probability", "rotation", "scale", "centre (pixels)", title="What, and where")
    for prediction, label in zip(predictions, labels, strict=True):
        transform = prediction.transform()
        x, y = transform.quad.mean(axis=0)
        scale = " x ".join(f"{s:.2f}" for s in transform.pose.scale)
        style = "green" if prediction.label == label else "red"
        table.add_row(
            label,
            f"[{style}]{prediction.label}[/]",
            f"{prediction.probability:.3f}",
            f"{transform.pose.rotation_degrees:+.0f}°",
            scale,
            f"({x:.0f}, {y:.0f})",
        )
    return table


def _draw(images: NDArray[np.uint8], predictions: list[Prediction], path: Path) -> None:
    pngs = map(_png, images)
    contact_sheet([p.draw(png) for p, png in zip(predictions, pngs, strict=True)], columns=4).save(path)


def _show_next(output: Path, model: Path, console: Console) -> None:
    console.print(f"Look at [bold]{output / 'demo.png'}[/] and [bold]{output / 'with' / 'transforms.png'}[/].")
    console.print(f"The model is {model}. Go on with")
    console.print(f"  stn serve --model-repository {output / 'model_repository'}")
    console.print("  stn predict YOUR_DIGIT.png --draw answer.png")
    console.print("  stn train digits_rts")
