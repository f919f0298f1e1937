"""Float16 where it does no harm: everything but what says where to look."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from training.models.network import Network
from training.stn import SpatialTransformer


def halve(network: Network) -> Network:
    """A copy with float16 weights and activations, for export.

    Regression layers, thetas, grids and the sampling stay in float32: a grid in float16 is off by tenths of a pixel on
    a large image, and GridSample has no float16 kernel under CUDA. Theta still carries what float16 costs the
    localisation network before it; how much is measured, and published with the model.
    """
    halved = copy.deepcopy(network)
    precise = {module for transformer in _transformers(halved) for module in _precise(transformer)}
    for module in halved.modules():
        if module not in precise:
            _halve(module)
    for transformer in _transformers(halved):
        transformer.head.register_forward_pre_hook(_to_float)
    return halved


def _transformers(network: nn.Module) -> list[SpatialTransformer]:
    return [module for module in network.modules() if isinstance(module, SpatialTransformer)]


def _precise(transformer: SpatialTransformer) -> list[nn.Module]:
    return [*transformer.head.modules(), *transformer.transform.modules()]


def _halve(module: nn.Module) -> None:
    """Its own parameters and buffers, not those of the modules in it."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.half()
    for buffer in module.buffers(recurse=False):
        if buffer.is_floating_point():
            buffer.data = buffer.data.half()


def _to_float(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to(torch.float32) if isinstance(value, Tensor) else value for value in arguments)
