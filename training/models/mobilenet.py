"""MobileNet V1 with the weights of TensorFlow, from a `.npz` file of one array a variable."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCKS = 13
NORMALIZATION = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


class WeightsError(ValueError):
    """Pretrained weights that are missing, unreadable or of another network; says which, and what to do."""


def mobilenet_config(path: Path) -> dict[str, Any]:
    """The architecture of a file of weights, as `training.models.pretrained` describes it.

    Raises:
        WeightsError: no `.npz` file, or one without these arrays.
    """
    width = read_mobilenet_weights(path)["conv_stem.convolution.weight"].shape[0]
    return {
        "model_type": "mobilenet_v1",
        "depth_multiplier": width / 32,
        "tf_padding": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def pad_in_convolutions(model: Any) -> None:  # noqa: ANN401 - `transformers` is imported late
    """Leave padding to convolutions where TensorFlow pads as they do, which spares a copy of the map.

    Steps of two pad an even size on the right and at the bottom only; with steps of one both sides are alike.
    """
    symmetric = copy.deepcopy(model.config)
    symmetric.tf_padding = False
    for layer in model.layer:
        if model.config.tf_padding and layer.convolution.stride == (1, 1):
            layer.config = symmetric
            layer.convolution.padding = tuple(size // 2 for size in layer.convolution.kernel_size)


def read_mobilenet_weights(path: Path) -> dict[str, Tensor]:
    """The state of a `MobileNetV1Model`, and `classifier.weight` and `.bias`, from TensorFlow's arrays.

    Names are TensorFlow's with `__` for `/` (`conv_dw_1__depthwise_kernel`); kernels are HWIO.

    Raises:
        WeightsError: no `.npz` file, or one without these arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _translated(arrays)
    except KeyError as error:
        raise WeightsError(f"{path} holds no MobileNet V1: {error.args[0]}") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is not a readable .npz file of weights: {error}") from error


def _translated(arrays: Any) -> dict[str, Tensor]:  # noqa: ANN401 - what numpy.load gives
    state: dict[str, Tensor] = {}
    places = {"conv1": "conv_stem"}
    for block in range(BLOCKS):
        places |= {f"conv_dw_{block + 1}": f"layer.{2 * block}", f"conv_pw_{block + 1}": f"layer.{2 * block + 1}"}
    for name, place in places.items():
        kernel = "depthwise_kernel" if "dw" in name else "kernel"
        state[f"{place}.convolution.weight"] = _kernel(arrays[f"{name}__{kernel}"], depthwise="dw" in name)
        for key, parameter in NORMALIZATION.items():
            state[f"{place}.normalization.{parameter}"] = torch.from_numpy(arrays[f"{name}_bn__{key}"])
    state["classifier.weight"] = _kernel(arrays["conv_preds__kernel"]).flatten(1)
    state["classifier.bias"] = torch.from_numpy(arrays["conv_preds__bias"])
    return state


def _kernel(array: NDArray[np.float32], *, depthwise: bool = False) -> Tensor:
    """HWIO, or HWIM of a depthwise convolution, to OIHW."""
    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))
