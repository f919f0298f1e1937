"""Proof that a model repository entry computes what PyTorch computes, through the code that serves.

Each check runs at batches of 1, 2, 7 and the largest:

real          test images of the data set
noise         uniform noise: the sharpest edges there are
half_pixel    noise, theta forced to move by nearly half a pixel: nearest for bilinear, swapped axes or another
              `align_corners` pass wherever theta is the identity, but not here
far           noise, theta forced to look far outside
out_of_range  ramps, raw parameters of up to 1e30 in size, which the guard clamps
non_finite    ramps, raw parameters that are NaN or infinite

(Ramps, because a theta at its bound runs a thousand times across the image from one pixel to the next: on noise the
last bit of a coordinate would decide.)

A theta is forced by giving the regression layers constant biases, in a copy of the network and in a copy of the very
file that will be published.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from stn_serve.poses import Box, source_quad
from training.models.network import Network
from training.stn import Transform

Images = NDArray[np.uint8]
Array = NDArray[np.float32]
Biases = dict[str, Array]
"""Of regression layers, by their names in the network."""

SMALL_BATCHES = (1, 2, 7)
NEARLY_HALF = (0.45, 0.4, 0.35)
"""Of a pixel along x, y, z: not a half, where the nearest neighbour is a matter of rounding, and not alike."""
SEED = 20150605


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a served answer may be from PyTorch's."""

    error: float
    """Of every number; for an output whose largest magnitude is above 1, as a share of that."""
    top_class_agreement: float
    """Share of the images whose top class must be the same."""
    displacement_px: float
    """Of a source quad's corner."""


TOLERANCES = {"fp32": Tolerance(error=1e-5, top_class_agreement=1.0, displacement_px=1e-2)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityRow:
    """One output of one check at one batch size."""

    check: str
    output: str
    batch: int
    max_absolute: float
    mean_absolute: float
    max_relative: float
    """The largest error against the output's largest magnitude."""
    top_class_agreement: float | None
    """Only of logits."""
    displacement_px: float | None
    """How far a corner of a source quad is off, at most; only of theta on images."""
    failure: str
    """Empty where it passed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReport:
    """What was compared, and how it came out."""

    precision: str
    rows: tuple[ParityRow, ...]

    @property
    def failures(self) -> list[str]:
        """One line for each check and output that failed."""
        return [row.failure for row in self.worst() if row.failure]

    def worst(self) -> list[ParityRow]:
        """For each check and output the batch size that failed, or came nearest to it."""
        worst: dict[tuple[str, str], ParityRow] = {}
        for row in self.rows:
            key = row.check, row.output
            worst[key] = max(worst.get(key, row), row, key=lambda row: (bool(row.failure), row.max_absolute))
        return list(worst.values())

    def to_json(self) -> str:
        """The document `parity.json`."""
        fields = {
            "precision": self.precision,
            "passed": not self.failures,
            "tolerance": asdict(TOLERANCES[self.precision]),
            "rows": [asdict(row) for row in self.rows],
        }
        return json.dumps(fields, indent=2) + "\n"


class ParityError(ValueError):
    """A model that does not compute what PyTorch computes: which checks failed, and by how much."""

    def __init__(self, report: ParityReport) -> None:
        super().__init__(f"the exported model does not compute what PyTorch does: {'; '.join(report.failures)}")
        self.report = report


def measure_parity(
    network: Network, directory: Path, version: int, config: ModelConfig, images: Images, precision: str = "fp32"
) -> ParityReport:
    """Compare a version of a model in its repository with the network it was exported from.

    Args:
        network: in evaluation mode, on the CPU.
        directory: of the model, with its labels and `VERSION/model.onnx`.
        version: which one.
        config: as `stn_serve.repository.read_config` gives it.
        images: real ones, UINT8 `[M, H, W, C]`; repeated where they are fewer than the largest batch.
        precision: whose tolerances hold.

    Raises:
        GraphError: the file lacks the regression layers, so that no theta can be forced.
        ConfigurationError: the serving code refuses the model.
    """
    largest = max(config.max_batch_size, 1)
    shape = (largest, *images.shape[1:])
    noise, ramps = _noise(shape), _ramps(shape)
    model = Model.load(directory, version, config)
    rows = [
        *_compare("real", network, model, np.resize(images, shape), precision),
        *_compare("noise", network, model, noise, precision),
    ]
    for check, biases in _forced_biases(network).items():
        forced = _force_network(network, biases)
        pictures = noise if check in ("half_pixel", "far") else ramps
        rows += _compare(check, forced, _force_model(model, directory, biases), pictures, precision)
    return ParityReport(precision=precision, rows=tuple(rows))


def _noise(shape: tuple[int, ...]) -> Images:
    return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)


def _ramps(shape: tuple[int, ...]) -> Images:
    """From black to white, each image in another direction."""
    count, height, width, _ = shape
    share = np.linspace(0, 1, count)[:, None, None, None]
    x, y = np.linspace(0, 255, width)[:, None], np.linspace(0, 255, height)[:, None, None]
    return np.asarray(np.broadcast_to(share * x + (1 - share) * y, shape).astype(np.uint8))


def _compare(check: str, network: Network, model: Model, images: Images, precision: str) -> Iterator[ParityRow]:
    height, width = images.shape[1:3]
    frame = Box(0, 0, width, height)
    expected = _ask_torch(network, images)
    for batch in sorted({size for size in SMALL_BATCHES if size < len(images)} | {len(images)}):
        served = model.run({"image": images[:batch]})
        for output, reference in expected.items():
            yield _row(check, output, reference[:batch], served[output], frame, precision)


def _ask_torch(network: Network, images: Images) -> dict[str, Array]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        answer = network(pixels)
    return {name: output.numpy() for name, output in answer._asdict().items() if output is not None}


def _row(check: str, output: str, reference: Array, served: Array, frame: Box, precision: str) -> ParityRow:
    error = np.nan_to_num(np.abs(served.astype(np.float64) - reference), nan=inf)
    magnitude = float(np.abs(reference).max())
    agreement = _agreement(reference, served) if output == "logits" else None
    displacement = _displacement(reference, served, frame) if output == "theta" else None
    tolerance = TOLERANCES[precision]
    wrong = []
    if not error.max() <= tolerance.error * max(1.0, magnitude):
        wrong.append(f"is off by {error.max():.2g}, {tolerance.error * max(1.0, magnitude):.2g} allowed")
    if agreement is not None and agreement < tolerance.top_class_agreement:
        wrong.append(f"has the same top class for {agreement:.1%} of the images")
    if displacement is not None and not displacement <= tolerance.displacement_px:
        wrong.append(f"moves a corner by {displacement:.2g} px, {tolerance.displacement_px:.2g} allowed")
    return ParityRow(
        check=check,
        output=output,
        batch=len(reference),
        max_absolute=float(error.max()),
        mean_absolute=float(error.mean()),
        max_relative=float(error.max() / magnitude) if magnitude else 0.0,
        top_class_agreement=agreement,
        displacement_px=displacement,
        failure=f"{check} (batch {len(reference)}): {output} {', '.join(wrong)}" if wrong else "",
    )


def _agreement(reference: Array, served: Array) -> float:
    return float((reference.argmax(-1) == served.argmax(-1)).mean())


def _displacement(reference: Array, served: Array, frame: Box) -> float | None:
    """Pixels of the input; None for the maps of volumes."""
    if reference.shape[-1] == 4:
        return None
    moved = source_quad(served, frame) - source_quad(reference, frame)
    return float(np.nan_to_num(np.linalg.norm(moved, axis=-1), nan=inf).max())


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


def _force_model(model: Model, directory: Path, biases: Biases) -> Model:
    """The same model, loaded from a copy of its file with other regression layers."""
    changed = onnx.load(directory / str(model.version) / "model.onnx")
    for name, bias in biases.items():
        _force_head(changed.graph, name, bias)
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary) / directory.name
        shutil.copytree(directory, copied, ignore=shutil.ignore_patterns("*.onnx"))
        onnx.save(changed, copied / str(model.version) / "model.onnx")
        return Model.load(copied, model.version, model.config)


def _force_head(graph: onnx.GraphProto, name: str, bias: Array) -> None:
    """Give one layer weights of its own: the exporter merges weights that are equal, and drops biases of zero."""
    weight = f"{name}.weight"
    nodes = [node for node in graph.node if weight in node.input]
    if [node.op_type for node in nodes] != ["Gemm"]:
        found = [node.op_type for node in nodes] or "none"
        raise GraphError([("regression layer", f"one Gemm with '{weight}', to force its theta", found)])
    old = next(tensor for tensor in graph.initializer if tensor.name == weight)
    kind = onnx.helper.tensor_dtype_to_np_dtype(old.data_type)
    forced = {f"{name}.forced_weight": np.zeros(old.dims, kind), f"{name}.forced_bias": bias.astype(kind)}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in forced.items())
    del nodes[0].input[1:]
    nodes[0].input.extend(forced)
