"""The first convolution behind a transformer: what `nn.Conv2d` gives, with all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from training.models.image_convolution import ImageConv2d


def gradients(layer: nn.Conv2d, images: Tensor, wanted: Tensor, precision: torch.dtype | None) -> list[Tensor]:
    """Of images, weight and bias; and the answer."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision is not None):
        answer = layer(images)
    answer.backward(wanted.to(answer.dtype))
    layer_gradients = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    assert images.grad is not None
    return [answer, images.grad, *(each for each in layer_gradients if each is not None)]


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize(("channels", "kernel_size", "bias"), [(3, 5, True), (1, 3, False), (4, 7, True)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_answers_and_gradients_are_those_of_a_convolution(
    channels: int, kernel_size: int, bias: bool, memory_format: torch.memory_format, precision: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    kind = torch.float64 if precision is None else torch.float32
    layer = ImageConv2d(channels, 24, kernel_size, bias=bias).to(kind)
    usual = nn.Conv2d(channels, 24, kernel_size, padding=kernel_size // 2, bias=bias).to(kind)
    usual.load_state_dict(layer.state_dict())
    images = torch.rand(2, channels, 9, 12, dtype=kind).contiguous(memory_format=memory_format)
    wanted = torch.randn(2, 24, 9, 12, dtype=kind)
    tolerance = 1e-12 if precision is None else 0.1
    for ours, theirs in zip(
        gradients(layer, images, wanted, precision), gradients(usual, images, wanted, precision), strict=True
    ):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("outputs", "is_learned", "is_ours"), [(24, True, True), (24, False, False), (8, True, False)])
def test_gradients_are_computed_our_way_where_that_is_faster(outputs: int, is_learned: bool, is_ours: bool) -> None:
    answer = ImageConv2d(3, outputs, 5)(torch.rand(1, 3, 8, 8).requires_grad_(is_learned))
    assert (type(answer.grad_fn).__name__ == "_ConvolutionBackward") is is_ours
