"""Networks by other people: a factory, weights, and an example of what they take.

The factory gives a module that takes images `[N, C, H, W]` in [0, 1], normalises them itself, and answers logits
`[N, K]` (or `[N, P, K]` for sequences), or a pair or dictionary of logits and theta. It may sample with `F.grid_sample`
or our `SpatialTransformer`, anywhere; of the latter theta is collected where the network does not return it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from export.description import ExportError
from export.parity_cases import Images
from export.source import Source
from training.models.network import Answer, Network, PlacedTransformer
from training.stn import ParallelSpatialTransformer, SpatialTransformer


def from_factory(factory: str, checkpoint: Path, examples: Sequence[Path], labels: Path | None = None) -> Source:
    """Build, load and wrap a network.

    Args:
        factory: `package.module:function`, called without arguments; looked for where the command runs, too. Its code
            is run.
        checkpoint: a state dict as `torch.save` writes it, alone or under the key `state_dict` or `model`. No code in
            it is run.
        examples: images of the size and colour that the network takes.
        labels: a file with the name of one class a line; by default the classes are numbered.

    Raises:
        ExportError: there is no such function, the weights do not fit, the images differ, or the answer is none.
    """
    module = _build(factory)
    _load(module, checkpoint)
    images = _read_examples(examples)
    network = module.eval() if isinstance(module, Network) else ForeignNetwork(module, _input_size(images))
    if tuple(network.input_size) != _input_size(images):
        raise ExportError(f"example: is {_input_size(images)}, the network takes {tuple(network.input_size)}")
    return Source(
        description=f"{factory} with {checkpoint}",
        network=network,
        labels=_labels(network, images, labels),
        own_examples=images,
        origin={"factory": factory, "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()},
    )


class ForeignNetwork(Network):
    """Gives another's module the face of ours.

    Args:
        module: see the top of this file.
        input_size: channels, height and width.
    """

    def __init__(self, module: nn.Module, input_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.module = module
        self.input_size = input_size
        self.eval()
        self._placed: dict[SpatialTransformer, PlacedTransformer] = {}
        if self._answers_logits_alone():
            self._collect()

    def forward(self, images: Tensor) -> Answer:
        """Logits, and theta where there is one."""
        thetas: dict[SpatialTransformer, Tensor] = {}
        hooks = [transformer.register_forward_hook(_noting(thetas)) for transformer in self._placed]
        try:
            logits, theta = _split(self.module(images))
        finally:
            for hook in hooks:
                hook.remove()
        if theta is None and thetas:
            theta = torch.cat([_per_transformer(found) for found in thetas.values()], dim=1)
        return Answer(logits, theta if theta is None or theta.dim() > 3 else theta.unsqueeze(1))

    def transformers(self) -> list[PlacedTransformer]:
        """Ours that it is built with, in the order they are called; none where it answers theta itself."""
        return [
            PlacedTransformer(f"{placed.name}{suffix}", placed.place, placed.module)
            for placed in self._placed.values()
            for suffix in _suffixes(placed.module)
        ]

    def _answers_logits_alone(self) -> bool:
        return _split(self._ask(torch.zeros(2, *self.input_size)))[1] is None

    def _collect(self) -> None:
        """Note our transformers in the order they are called, and which of them see the image itself."""
        images = torch.zeros(2, *self.input_size)
        names = {module: name for name, module in self.module.named_modules() if isinstance(module, SpatialTransformer)}

        def note(module: SpatialTransformer, arguments: tuple[Any, ...]) -> None:
            place = "image" if arguments and arguments[0] is images else "inside"
            self._placed[module] = PlacedTransformer(names[module] or "transformer", place, module)

        hooks = [module.register_forward_pre_hook(note) for module in names]
        self._ask(images)
        for hook in hooks:
            hook.remove()

    @torch.no_grad()
    def _ask(self, images: Tensor) -> object:
        try:
            return self.module(images)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = list(images.shape)
            raise ExportError(f"the network fails on images {shape}: {str(error).splitlines()[0]}") from error


def _noting(thetas: dict[SpatialTransformer, Tensor]) -> Any:  # noqa: ANN401 - torch's type of a hook
    def note(module: SpatialTransformer, _: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        thetas[module] = output[1]

    return note


def _per_transformer(theta: Tensor) -> Tensor:
    """`[N, S, ...]`: parallel transformers give it, single ones lack the second axis."""
    return theta if theta.dim() == 4 else theta.unsqueeze(1)


def _suffixes(module: SpatialTransformer) -> list[str]:
    return [f"_{index}" for index in range(module.count)] if isinstance(module, ParallelSpatialTransformer) else [""]


def _split(answer: object) -> tuple[Tensor, Tensor | None]:
    """Logits and theta of whatever a network returns."""
    match answer:
        case Answer(logits, theta):
            return logits, theta
        case Tensor():
            return answer, None
        case {"logits": Tensor() as logits, "theta": Tensor() as theta, **others} if not others:
            return logits, theta
        case {"logits": Tensor() as logits, **others} if not others:
            return logits, None
        case (Tensor() as logits, Tensor() as theta):
            return logits, theta
    found = f"keys {', '.join(map(str, answer))}" if isinstance(answer, Mapping) else type(answer).__name__
    raise ExportError(
        f"the network answers {found}, expected logits, (logits, theta) or {{'logits': ..., 'theta': ...}}"
    )


def _build(factory: str) -> nn.Module:
    package, _, function = factory.partition(":")
    if not package or not function:
        raise ExportError(f"model: expected package.module:function, got '{factory}'")
    sys.path.insert(0, str(Path.cwd()))
    try:
        build = getattr(importlib.import_module(package), function, None)
    except ImportError as error:
        raise ExportError(f"model: '{package}' cannot be imported: {error}") from error
    finally:
        sys.path.pop(0)
    if not callable(build):
        raise ExportError(f"model: '{package}' has no function '{function}'")
    module = build()
    if not isinstance(module, nn.Module):
        raise ExportError(f"model: {factory} gives a {type(module).__name__}, expected a torch.nn.Module")
    return module


def _load(module: nn.Module, checkpoint: Path) -> None:
    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ExportError(f"there is no checkpoint {checkpoint}") from error
    except Exception as error:  # torch.load raises whatever its zip and pickle readers meet
        reason = str(error).splitlines()[0]
        raise ExportError(f"{checkpoint} cannot be read without running code in it: {reason}") from error
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, dict) and isinstance(found.get(key), dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ExportError(f"{checkpoint} is not a state dict, nor holds one under 'state_dict' or 'model'")
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise ExportError(f"{checkpoint} does not fit the network: {' '.join(str(error).split())}") from error


def _read_examples(paths: Sequence[Path]) -> Images:
    if not paths:
        raise ExportError("example: give an image of the size that the network takes")
    images = [_read(path) for path in paths]
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise ExportError(f"example: all must have one size and colour, these have {shapes}")
    return np.stack(images)


def _read(path: Path) -> Images:
    """`[H, W, 1]` of a gray image, else `[H, W, 3]`."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ExportError(f"example: {path} cannot be read as an image: {error}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _input_size(images: Images) -> tuple[int, int, int]:
    _, height, width, channels = images.shape
    return channels, height, width


def _labels(network: Network, images: Images, path: Path | None) -> tuple[str, ...]:
    if path:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    with torch.no_grad():
        logits = network(torch.zeros(2, *_input_size(images))).logits
    return tuple(map(str, range(logits.shape[-1])))
