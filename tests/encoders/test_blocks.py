"""The strided 1x1 convolution that is none: the same numbers, and gradients, as torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from fusion3d.encoders.blocks import Subsampled1x1


@pytest.mark.parametrize("shape", [(2, 4, 16, 24), (1, 4, 7, 5), (11, 4, 16, 24)])
@pytest.mark.parametrize("step", [1, 2])
def test_it_equals_a_strided_convolution(shape: tuple[int, ...], step: int) -> None:
    torch.manual_seed(0)
    layer = Subsampled1x1(4, 8, step).double()
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    other = x.detach().clone().requires_grad_()
    ours, theirs = layer(x), conv2d(other, weight, stride=step)
    torch.testing.assert_close(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_few_channels_in_channels_last_order_train() -> None:
    """An odd number of images with few channels: where a strided 1x1 convolution's backward pass corrupts memory."""
    torch.manual_seed(0)
    for inputs, size in ((4, (16, 24)), (8, (8, 12))):
        layer = Subsampled1x1(inputs, 2 * inputs, 2)
        for _ in range(40):
            x = torch.randn(11, inputs, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
            layer(x).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()
