"""Weights rounded to float16 and stored so, but computed with in float32: half the file on any machine.

It is the rounded network that is exported, and the proof of its export is as strict as float32's. What rounding costs
is a property of the network, and measured like that of any other precision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.onnx_export import heads
from training.models.network import Network

STORED = ".stored"
"""Added to the name of a weight as it lies in the file; the weight itself keeps its own."""


def round_weights(network: Network) -> Network:
    """A copy whose weights are float16's nearest. Regression layers, which say where to look, stay as they are.

    Batch normalisations are folded into the convolutions before them first, as the exporter would do afterwards.
    """
    rounded = copy.deepcopy(network)
    for module in list(rounded.modules()):
        _fold_normalizations(module)
    for _, weight in _weights(rounded):
        weight.data = weight.data.half().to(weight.dtype)
    return rounded


def store_in_half(path: Path, network: Network) -> None:
    """Rewrite the model of a network with rounded weights: each in float16, and cast where it is used.

    Runtimes fold the casts when they load the file. Constants that are no weights, such as grids, stay in float32.
    """
    model = onnx.load(path)
    weights = {name for name, _ in _weights(network)}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, name + STORED))
            casts.append(helper.make_node("Cast", [name + STORED], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    onnx.save(model, path)


def _fold_normalizations(module: nn.Module) -> None:
    """Of children in a row, as networks of convolutions are written."""
    for (first, convolution), (second, normalization) in pairwise(list(module.named_children())):
        if isinstance(convolution, nn.Conv2d) and isinstance(normalization, nn.BatchNorm2d):
            setattr(module, first, fuse_conv_bn_eval(convolution, normalization))
            setattr(module, second, nn.Identity())


def _weights(network: Network) -> Iterator[tuple[str, Tensor]]:
    kept = {f"{head}.{part}" for head in heads(network) for part in ("weight", "bias")}
    return ((name, weight) for name, weight in network.named_parameters() if name not in kept)
