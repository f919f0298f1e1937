"""A convolution of images whose gradient goes on to the images, for CPUs: there that costs more than all else of it.

What stands behind a transformer that samples the image needs the gradient with respect to a map of three channels. A
library's convolution that gives so few of them leaves most of its lanes idle. Columns of the kernel as channels fill
them: one convolution over rows gives, for each column, what it adds to the pixels aside, and these are summed where
they belong. Forward, and for the weights, nothing differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_INPUTS = 4
"""Channels of what may be called an image."""
MIN_OUTPUTS = 24
"""With fewer it is slower in bfloat16, in which narrow networks train (`python -m benchmarks.image_convolution`)."""


class ImageConv2d(nn.Conv2d):
    """`nn.Conv2d` of images `[N, C, H, W]`, with a square kernel of odd size, stride 1 and same padding.

    Args:
        inputs: C.
        outputs: channels of the answer.
        kernel_size: odd.
        bias: whether to add one.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """The map `[N, outputs, H, W]`."""
        device = images.device.type
        if device != "cpu" or not images.requires_grad or not self._is_worth_it() or torch.compiler.is_compiling():
            return super().forward(images)
        operands: tuple[Tensor | None, ...] = (images, self.weight, self.bias)
        if torch.is_autocast_enabled(device) and images.dtype is not torch.float64:
            lower = torch.get_autocast_dtype(device)
            operands = tuple(None if each is None else each.to(lower) for each in operands)
        answer: Tensor = _Convolution.apply(*operands)  # type: ignore[no-untyped-call]
        return answer

    def _is_worth_it(self) -> bool:
        return self.in_channels <= MAX_INPUTS and self.out_channels >= MIN_OUTPUTS


class _Convolution(torch.autograd.Function):
    """Differs from `F.conv2d` in how the gradient of the images is computed."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: ANN401
        images, weight = ctx.saved_tensors
        _, *others = ctx.needs_input_grad
        padding = [weight.shape[-1] // 2] * 2
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, images, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, [False, *others]
        )
        return gradient_of_images(gradient, weight), of_weight, of_bias


def gradient_of_images(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient `[N, C, H, W]` with respect to images.

    Args:
        gradient: with respect to the map, `[N, K, H, W]`.
        weight: of the convolution, `[K, C, k, k]`.
    """
    outputs, channels, size, _ = weight.shape
    aside = size // 2
    columns = weight.permute(3, 1, 0, 2).reshape(size * channels, outputs, size, 1).flip(2)
    columns = columns.contiguous(memory_format=torch.channels_last)
    parts = F.conv2d(gradient, columns, padding=(aside, 0)).unflatten(1, (size, channels))
    count, _, _, height, width = parts.shape
    total: Tensor = parts.new_zeros(count, channels, height, width + 2 * aside)
    for column in range(size):
        total[..., column : column + width] += parts[:, column]
    return total[..., aside : aside + width]
