"""From a network to an ONNX file: the image as a decoder yields it in, logits and theta out."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from export.description import ExportError, describe
from export.graph_contract import BATCH, GraphContract
from export.half_precision import halve
from stn_serve.metadata import METADATA_KEY
from training.models.network import Answer, Network

PREFIX = "network."
"""Of the weights' names in `Servable`, and so in the graph; without it they are the checkpoint's."""


class Servable(nn.Module):
    """A network with the face that is served.

    In: images UINT8 `[N, H, W, C]`, as a decoder yields them. Out: logits `[N, K]` or `[N, P, K]` and, if the network
    has transformers, theta `[N, S, ...]`.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Cast, layout and scale to [0, 1], then the network."""
        channels, height, width = self.network.input_size
        # With one channel both layouts are the same bytes: a reshape costs nothing, a transpose a copy.
        planes = image.reshape(-1, 1, height, width) if channels == 1 else image.permute(0, 3, 1, 2)
        answer: Answer = self.network((planes.float() / 255).to(self.dtype))
        outputs = (answer.logits,) if answer.theta is None else (answer.logits, answer.theta)
        return tuple(output.float() for output in outputs)


def export_onnx(network: Network, labels: Sequence[str], path: Path, *, half: bool = False) -> GraphContract:
    """Write a network, in evaluation mode and on the CPU, as an ONNX file, and check what was written.

    Args:
        network: what to export.
        labels: names of the classes.
        path: the file.
        half: compute in float16 but for grids, thetas and outputs (see `export.half_precision`).

    Returns:
        What the graph promises, and was found to keep.

    Raises:
        ExportError: the network has a shape or parts that the contract does not know.
        GraphError: the file is not what it must be.
    """
    contract = describe(network, labels)
    _, height, width = network.input_size
    example = torch.zeros(2, height, width, contract.metadata.input.channels, dtype=torch.uint8)
    distinct = _with_distinct_heads(network)
    servable = Servable(halve(distinct), torch.float16) if half else Servable(distinct)
    model = _trace(servable, example, contract)
    _tidy(model, contract)
    _restore_heads(model, network)
    onnx_ir.save(model, path)
    contract.check(onnx.load(path))
    return contract


def _with_distinct_heads(network: Network) -> Network:
    """A copy with random regression layers: the exporter merges weights that are equal, and drops biases of zero.

    Those of untrained transformers are both, and then no theta could be forced to prove that they work.
    """
    distinct = copy.deepcopy(network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in heads(network):
            for parameter in distinct.get_submodule(name).parameters():
                parameter.uniform_(generator=random)
    return distinct


def _restore_heads(model: onnx_ir.Model, network: Network) -> None:
    weights = network.state_dict()
    for name in heads(network):
        for key in (f"{name}.weight", f"{name}.bias"):
            model.graph.initializers[key].const_value = onnx_ir.tensor(weights[key].numpy().copy(), name=key)


def heads(network: Network) -> list[str]:
    """Names of the transformers' regression layers."""
    heads = {placed.module.head for placed in network.transformers()}
    return [name for name, module in network.named_modules() if module in heads]


def _trace(servable: Servable, example: Tensor, contract: GraphContract) -> onnx_ir.Model:
    try:
        with quiet_exporter():
            program = torch.onnx.export(
                servable,
                (example,),
                input_names=["image"],
                output_names=list(contract.outputs),
                opset_version=contract.opset,
                dynamic_shapes={"image": {0: BATCH}},
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(_explain(error)) from error
    assert program is not None  # noqa: S101 - only the old exporter gives None
    return program.model


def _explain(error: BaseException) -> str:
    """In a line what torch says in pages."""
    causes = []
    cause: BaseException | None = error
    while cause:
        causes.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    story = "\n".join(causes)
    if "inferred a static shape" in story or "specialized" in story:
        return (
            "the batch size would be frozen at that of the example: somewhere the network uses it as a plain number, "
            "as in x.reshape(2, 64); take x.flatten(1), x.shape[0] or -1"
        )
    if "data-dependent" in story:
        return "its way through the code depends on what the image shows; take torch.where instead of if and while"
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", story)
    if missing:
        advice = (
            ": what does not depend on the image can be computed beforehand, a 3x3 matrix inverted by its adjugate"
            if "linalg" in missing[1] or "inverse" in missing[1]
            else ""
        )
        return f"ONNX has nothing for {missing[1]}{advice}"
    return f"torch cannot export the network: {causes[-1].strip().splitlines()[0]}"


def _tidy(model: onnx_ir.Model, contract: GraphContract) -> None:
    """Name weights as the checkpoint does, drop traces of the machine it was made on, and say what it is."""
    ClearMetadataAndDocStringPass()(model)
    for value in list(model.graph.initializers.values()):
        value.name = (value.name or "").removeprefix(PREFIX)
    model.ir_version = contract.ir_version
    model.metadata_props[METADATA_KEY] = contract.metadata.to_json()


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks: none is about anything that a user can change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
