"""Proof that a model repository entry computes what PyTorch computes, through the code that serves.

Each check of `export.parity_cases` runs at batches of 1, 2, 7 and the largest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

from export.parity_cases import Array, Case, Images, parity_cases
from stn_serve.poses import Box, source_quad
from training.models.network import Network

Precision = Literal["fp32", "fp16", "fp16-weights", "int8"]

SMALL_BATCHES = (1, 2, 7)
DEEP = 20
"""Layers with weights."""
UNFORCED = ("real", "noise")
"""Checks in which theta is what the network makes it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a served answer may be from PyTorch's, which computes in fp32."""

    error: float
    """Of every number; for an output whose largest magnitude is above 1, as a share of that."""
    theta_error: float
    """The same for `theta`."""
    deep_error: float
    """The same for `logits` of a network of `DEEP` layers or more: rounding adds up from layer to layer."""
    led_error: float
    """The same where its theta is its own and not forced: theta's last bits move samples by thousandths of a pixel, and
    of that a deep network makes more than of its own rounding."""
    displacement_px: float
    """Of a source quad's corner."""
    led_theta_error: float
    """Of `theta` where it is the network's own and not forced: what it is found from may be less exact than it."""
    led_displacement_px: float
    """Likewise, of a source quad's corner."""
    top_class_agreement: float
    """Share of the images of each batch whose top class must be the same; 0 leaves it to the validation set."""
    accuracy_points: float
    """How much less of the validation set may be right, in percentage points."""


_EXACT = Tolerance(
    error=1e-5,
    deep_error=1e-4,
    led_error=1e-3,
    theta_error=1e-5,
    displacement_px=1e-2,
    led_theta_error=1e-5,
    led_displacement_px=1e-2,
    top_class_agreement=1.0,
    accuracy_points=0.02,
)
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": _EXACT,
    "fp16": Tolerance(
        error=1e-2,
        deep_error=1e-2,
        led_error=1e-2,
        theta_error=1e-2,
        displacement_px=0.25,
        led_theta_error=1e-2,
        led_displacement_px=0.25,
        top_class_agreement=0.0,
        accuracy_points=0.1,
    ),
    "fp16-weights": replace(_EXACT, accuracy_points=0.1),
    "int8": Tolerance(
        error=0.25,
        deep_error=0.25,
        led_error=0.25,
        theta_error=1e-5,
        displacement_px=1e-2,
        led_theta_error=2e-2,
        led_displacement_px=0.5,
        top_class_agreement=0.0,
        accuracy_points=0.2,
    ),
}
"""By precision. A model with float16 weights is compared with the network whose weights were rounded alike. Int8
leaves localisation and grid in fp32, so that a forced theta is as exact as fp32's; its own is off only where its
transformer looks at quantised features. A quickly trained ST-CNN Multi at 64 px moved corners by 0.07 px on average and
0.31 px at most, one with fresh weights by 0.19 px at most; the shipped digits and house numbers, whose transformers all
look at the image, not at all."""


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

    precision: Precision
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
    network: Network,
    directory: Path,
    version: int,
    config: ModelConfig,
    images: Images,
    precision: Precision = "fp32",
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
    cases = parity_cases(network, directory, version, config, images)
    return ParityReport(precision=precision, rows=tuple(row for case in cases for row in _compare(case, precision)))


def _compare(case: Case, precision: Precision) -> Iterator[ParityRow]:
    height, width = case.images.shape[1:3]
    frame = Box(0, 0, width, height)
    largest = len(case.images)
    expected = ask_torch(case.network, case.images)
    for batch in sorted({size for size in SMALL_BATCHES if size < largest} | {largest}):
        served = case.model.run({"image": case.images[:batch]})
        for output, reference in expected.items():
            share = _allowed_share(case, output, "theta" in expected, TOLERANCES[precision])
            yield _row(case.check, output, reference[:batch], served[output], frame, precision, share)


def _allowed_share(case: Case, output: str, looks: bool, tolerance: Tolerance) -> float:
    if output == "theta":
        return tolerance.led_theta_error if case.check in UNFORCED else tolerance.theta_error
    if sum(isinstance(module, nn.Conv2d | nn.Linear) for module in case.network.modules()) < DEEP:
        return tolerance.error
    return tolerance.led_error if looks and case.check in UNFORCED else tolerance.deep_error


def ask_torch(network: Network, images: Images) -> dict[str, Array]:
    """What the network says of images as they are served, UINT8 `[N, H, W, C]`: its outputs by name."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        answer = network(pixels)
    return {name: output.numpy() for name, output in answer._asdict().items() if output is not None}


def _row(
    check: str, output: str, reference: Array, served: Array, frame: Box, precision: Precision, share: float
) -> ParityRow:
    error = np.nan_to_num(np.abs(served.astype(np.float64) - reference), nan=inf)
    magnitude = float(np.abs(reference).max())
    agreement = _agreement(reference, served) if output == "logits" else None
    displacement = _displacement(reference, served, frame) if output == "theta" else None
    tolerance = TOLERANCES[precision]
    allowed_px = tolerance.led_displacement_px if check in UNFORCED else tolerance.displacement_px
    allowed = share * max(1.0, magnitude)
    wrong = []
    if not error.max() <= allowed:
        wrong.append(f"is off by {error.max():.2g}, {allowed:.2g} allowed")
    if agreement is not None and agreement < tolerance.top_class_agreement:
        wrong.append(f"has the same top class for {agreement:.1%} of the images")
    if displacement is not None and not displacement <= allowed_px:
        wrong.append(f"moves a corner by {displacement:.2g} px, {allowed_px:.2g} allowed")
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
