"""From a network to a published version: exported, proven, measured, and then whole in the repository or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from export.description import ExportError, describe
from export.half_weights import round_weights, store_in_half
from export.measurement import Measurement, accuracy_percent, measure
from export.onnx_export import export_onnx
from export.parity import TOLERANCES, ParityError, ParityReport, Precision, measure_parity
from export.parity_cases import Entry
from export.parity_picture import draw_worst
from export.pixel_sampling import sample_by_pixel
from export.provenance import provenance
from export.quantization import Quantization, quantize
from export.repository import draft
from export.source import Source, from_checkpoint
from export.tables import measurement_table, parity_table
from export.targets import Target, engine_of, on_this_machine
from stn_serve.session import create_session

LOSS_FOR_TUNING = 0.5
"""Share of the accuracy that may be lost which choosing layers may spend: other images will differ a little."""


class AccuracyError(ValueError):
    """A precision that costs more accuracy than it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version in a model repository."""

    path: Path
    """Its directory."""
    version: int
    parity: ParityReport
    measurement: Measurement | None
    """None for a network that brings no data set."""


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    name: str,
    version: int | None = None,
    *,
    max_batch_size: int | None = None,
    precision: Precision = "fp32",
    target: Target | None = None,
    console: Console | None = None,
) -> Published:
    """Export what training wrote; see `publish`.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: the data set with the images for proof and measurement cannot be had.
    """
    source = from_checkpoint(checkpoint)
    return publish(
        source,
        repository,
        name,
        version,
        max_batch_size=max_batch_size,
        precision=precision,
        target=target,
        console=console,
    )


def publish(
    source: Source,
    repository: Path,
    name: str,
    version: int | None = None,
    *,
    max_batch_size: int | None = None,
    precision: Precision = "fp32",
    target: Target | None = None,
    console: Console | None = None,
) -> Published:
    """Export a network, prove the export equal, measure it, and publish it: whole, or not at all.

    Args:
        source: the network and its data.
        repository: the model repository; made where it is missing.
        name: the model's name.
        version: a free version number; by default the next one.
        max_batch_size: by default that of the published model, or 64, fewer of large images.
        precision: of weights and activations.
        target: what will run it; by default what the published model runs on, or the CPU.
        console: told what happens; None is silent.

    Raises:
        ExportError: the network cannot be exported.
        TargetError: the target would compute it wrongly, or elsewhere than asked.
        GraphError: the exported graph is not what it must be.
        QuantizationError: it cannot be quantised without harm.
        ParityError: it does not compute what PyTorch computes.
        AccuracyError: the precision costs too much accuracy.
        PublishError: name or version are taken or cannot be.
        ConfigurationError: the model published under this name is broken.
    """
    console = console or Console(quiet=True)
    if precision != "fp32" and source.data is None:
        raise ExportError(f"{precision}: needs a data set to measure what it costs, and this network brings none")
    contract = describe(source.network, source.labels)
    (target or Target()).check(contract, precision)
    with draft(repository, name, version) as entry:
        config = entry.configure(contract, max_batch_size, target)
        target = target or Target(engine_of(config))
        target.check(contract, precision)
        console.print(f"Exporting {source.description} to ONNX, {precision}.")
        candidate = Entry(entry.directory, entry.version, on_this_machine(config))
        with _twin(candidate) as fp32:
            quantization = _write(source, precision, candidate, fp32)
            if target.engine == "cpu":
                sample_by_pixel(fp32.file)
                sample_by_pixel(candidate.file)
            parity = _prove(source, candidate, precision, console)
            measurement = _measure(source, candidate, fp32, precision, console)
        facts = {
            "precision": precision,
            "target": str(target),
            "measurement": asdict(measurement) if measurement else None,
            "quantization": asdict(quantization) if quantization else None,
        }
        origin = provenance(source.origin, facts, candidate.file)
        (entry.version_directory / "provenance.json").write_text(origin)
        path = entry.publish()
    console.print(f"Published [bold]{path}[/].")
    return Published(path=path, version=entry.version, parity=parity, measurement=measurement)


@contextmanager
def _twin(entry: Entry) -> Iterator[Entry]:
    """A place outside the repository for the same model in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / entry.directory.name
        shutil.copytree(entry.directory, directory)
        yield Entry(directory, entry.version, entry.config)


def _write(source: Source, precision: Precision, entry: Entry, fp32: Entry) -> Quantization | None:
    """The model in its precision, and in float32 beside it."""
    export_onnx(source.network, source.labels, fp32.file)
    if precision == "fp16":
        export_onnx(source.network, source.labels, entry.file, half=True)
    if precision == "fp16-weights":
        rounded = round_weights(source.network)
        export_onnx(rounded, source.labels, entry.file)
        store_in_half(entry.file, rounded)
    if precision == "fp32":
        shutil.copy(fp32.file, entry.file)
    if precision != "int8":
        return None
    assert source.data  # noqa: S101 - publish has refused a source without
    tuning = source.data.tuning()
    return quantize(
        fp32.file,
        entry.file,
        source.data.calibration(),
        judge=lambda file: accuracy_percent(create_session(file, entry.config), tuning),
        allowed_points=LOSS_FOR_TUNING * TOLERANCES["int8"].accuracy_points,
    )


def _prove(source: Source, entry: Entry, precision: Precision, console: Console) -> ParityReport:
    largest = entry.config.max_batch_size
    console.print(f"Comparing with PyTorch at batches of up to {largest}.")
    images = source.examples(max(largest, 1))
    network = round_weights(source.network) if precision == "fp16-weights" else source.network
    arguments = network, entry.directory, entry.version, entry.config, images
    parity = measure_parity(*arguments, precision)
    console.print(parity_table(parity))
    if parity.failures:
        raise ParityError(parity)
    directory = entry.file.parent
    (directory / "parity.json").write_text(parity.to_json())
    picture = draw_worst(*arguments)
    if picture:
        picture.save(directory / "parity.png")
    return parity


def _measure(source: Source, entry: Entry, fp32: Entry, precision: Precision, console: Console) -> Measurement | None:
    if source.data is None:
        return None
    reference = fp32.load()
    model = reference if precision == "fp32" else entry.load()
    measurement = measure(model, reference, source.data.validation())
    console.print(measurement_table(measurement, precision))
    allowed = TOLERANCES[precision].accuracy_points
    if measurement.lost_points > allowed:
        raise AccuracyError(
            f"{precision} is right on {measurement.accuracy_percent:.2f} % of {measurement.images} images, fp32 on "
            f"{measurement.fp32_accuracy_percent:.2f} %: {allowed:g} points less are allowed"
        )
    return measurement
