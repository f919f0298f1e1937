"""The inputs on which PyTorch and the served model are compared, and the thetas that are forced on both.

real          test images of the data set
noise         uniform noise: the sharpest edges there are
half_pixel    noise, theta forced to move by nearly half a pixel: nearest for bilinear, swapped axes or another
              `align_corners` pass wherever theta is the identity, but not here
far           noise, theta forced to look far outside; ramps, where thetas in series look out further than any one could
out_of_range  ramps, raw parameters of up to 1e30 in size, which the guard clamps
non_finite    ramps, raw parameters that are NaN or infinite

(Ramps, because a theta at its bound runs a thousand times across the image from one pixel to the next: on noise the
last bit of a coordinate would decide, `FAREST_ON_NOISE`.)

A theta is forced by giving the regression layers constant biases, in a copy of the network and in a copy of the very
file that will be published.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from math import inf, nan
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.graph_contract import GraphError
from stn_serve.model import Model
from training.models.network import Network
from training.stn import Transform

Images = NDArray[np.uint8]
Array = NDArray[np.float32]
Biases = dict[str, Array]
"""Of regression layers, by their names in the network."""
Edit = Callable[[onnx.GraphProto], None]
"""A change to a graph, in place."""

NEARLY_HALF = (0.45, 0.4, 0.35)
"""Of a pixel along x, y, z: not a half, where the nearest neighbour is a matter of rounding, and not alike."""
FAREST_ON_NOISE = 16.0
"""The largest number in a theta under which noise is looked at; from further the last bit of a coordinate decides."""
SEED = 20150605


@dataclass(frozen=True, slots=True)
class Case:
    """A check: the same images for a network and for the model that must answer alike."""

    check: str
    network: Network
    model: Model
    images: Images


def parity_cases(
    network: Network, directory: Path, version: int, config: ModelConfig, images: Images, edit: Edit | None = None
) -> Iterator[Case]:
    """Every check, at the configuration's largest batch.

    Args:
        network: in evaluation mode, on the CPU.
        directory: of the model, with its labels and `VERSION/model.onnx`.
        version: which one.
        config: as `stn_serve.repository.read_config` gives it.
        images: real ones, UINT8 `[M, H, W, C]`; repeated where they are fewer than the largest batch.
        edit: made to every graph that is loaded; without it, `real` and `noise` run the very file.

    Raises:
        GraphError: the file lacks the regression layers, so that no theta can be forced.
        ConfigurationError: the serving code refuses the model.
    """
    shape = (max(config.max_batch_size, 1), *images.shape[1:])
    noise, ramps = _noise(shape), _ramps(shape)
    entry = Entry(directory, version, config)
    model = entry.changed(edit) if edit else entry.load()
    yield Case("real", network, model, np.resize(images, shape))
    yield Case("noise", network, model, noise)
    for check, biases in _forced_biases(network).items():
        forced = _force_network(network, biases)
        yield Case(check, forced, entry.changed(_forcing(biases, edit)), noise if _is_near(forced) else ramps)


@dataclass(frozen=True, slots=True)
class Entry:
    """A version of a model in a repository, or in the draft of one."""

    directory: Path
    version: int
    config: ModelConfig

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.directory / str(self.version) / "model.onnx"

    def load(self) -> Model:
        """As it is."""
        return Model.load(self.directory, self.version, self.config)

    def changed(self, edit: Edit) -> Model:
        """Loaded from a copy with a changed graph."""
        model = onnx.load(self.file)
        edit(model.graph)
        with tempfile.TemporaryDirectory() as temporary:
            copied = Path(temporary) / self.directory.name
            shutil.copytree(self.directory, copied, ignore=shutil.ignore_patterns("*.onnx"))
            onnx.save(model, copied / str(self.version) / "model.onnx")
            return Model.load(copied, self.version, self.config)


def _is_near(forced: Network) -> bool:
    """Whether the thetas of a network, the same for every image, see it from near enough to compare on noise."""
    with torch.no_grad():
        _, theta = forced(torch.zeros(1, *forced.input_size))
    return theta is None or float(theta.abs().max()) < FAREST_ON_NOISE


def _noise(shape: tuple[int, ...]) -> Images:
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def _ramps(shape: tuple[int, ...]) -> Images:
    """From black to white, each image in another direction."""
    count, height, width, _ = shape
    share = np.linspace(0, 1, count)[:, None, None, None]
    x, y = np.linspace(0, 255, width)[:, None], np.linspace(0, 255, height)[:, None, None]
    return np.asarray(np.broadcast_to(share * x + (1 - share) * y, shape).astype(np.uint8))


def _forced_biases(network: Network) -> dict[str, Biases]:
    """For each check, what every regression layer is to answer."""
    names = {module: name for name, module in network.named_modules()}
    checks: dict[str, Biases] = {}
    for placed in network.transformers():
        head, transform = placed.module.head, placed.module.transform
        for check, parameters in _forced_parameters(transform, network.input_size).items():
            bias = np.tile(np.array(parameters, np.float32), len(head.bias) // len(parameters))
            checks.setdefault(check, {})[names[head]] = bias
    return checks


def _forced_parameters(transform: Transform, input_size: tuple[int, int, int]) -> dict[str, list[float]]:
    _, height, width = input_size
    pixels = (2 / width, 2 / height, 2 / height)
    shift = [share * pixel for share, pixel in zip(NEARLY_HALF, pixels, strict=True)]
    count = transform.parameter_count
    far = np.random.default_rng(SEED).normal(transform.identity(), 3.0)
    return {
        "half_pixel": transform.start(shift[: transform.dimensions]),
        "far": far.tolist(),
        "out_of_range": list(islice(cycle((1e30, -1e6, 2e3, -1e30)), count)),
        "non_finite": list(islice(cycle((nan, inf, -inf)), count)),
    }


def _force_network(network: Network, biases: Biases) -> Network:
    forced = copy.deepcopy(network)
    with torch.no_grad():
        for name, bias in biases.items():
            head = cast(nn.Linear, forced.get_submodule(name))
            head.weight.zero_()
            head.bias.copy_(torch.from_numpy(bias))
    return forced


def _forcing(biases: Biases, edit: Edit | None) -> Edit:
    def force(graph: onnx.GraphProto) -> None:
        for name, bias in biases.items():
            _set_weight(graph, f"{name}.weight", np.float32(0))
            _set_weight(graph, f"{name}.bias", bias)
        if edit:
            edit(graph)

    return force


def _set_weight(graph: onnx.GraphProto, name: str, value: Array | np.float32) -> None:
    tensor = next((tensor for tensor in graph.initializer if tensor.name == name), None)
    users = [node.op_type for node in graph.node if name in node.input]
    if tensor is None or users != ["Gemm"]:
        raise GraphError([("regression layer", f"one Gemm with '{name}', to force its theta", users or "none")])
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.broadcast_to(value, tensor.dims).astype(kind), name))
