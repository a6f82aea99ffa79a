"""The strided 1x1 convolution that is none: the same numbers, and gradients, as torch's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from fusion3d.build import build_model
from fusion3d.config import load_config
from fusion3d.encoders.blocks import Subsampled1x1, conv_block

ROOT = Path(__file__).parents[2]


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


def test_float32_in_channels_last_order() -> None:
    torch.manual_seed(0)
    layer = Subsampled1x1(4, 8, 2)
    x = torch.randn(11, 4, 16, 24).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = layer(x)
    torch.testing.assert_close(ours, conv2d(x, layer.weight, stride=2))
    ours.sum().backward()
    assert x.grad is not None and torch.equal(x.grad[..., 1::2, :], torch.zeros(11, 4, 8, 24))


def test_few_channels_in_channels_last_order_train_on_two_threads() -> None:
    """An odd number of images with few channels: where a strided 1x1 convolution's backward pass corrupts memory."""
    code = """
import torch
from fusion3d.encoders.blocks import Subsampled1x1
torch.set_num_threads(2)
for inputs, size in ((4, (16, 24)), (8, (8, 12))):
    layer = Subsampled1x1(inputs, 2 * inputs, 2)
    for _ in range(40):
        x = torch.randn(11, inputs, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
        layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_model_has_a_strided_1x1_convolution(path: Path) -> None:
    with torch.device("meta"):
        layers = [m for m in build_model(load_config(path), pretrained=False).modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) > 10 and not [m for m in layers if m.kernel_size == (1, 1) and max(m.stride) > 1]
    with pytest.raises(AssertionError, match="Subsampled1x1"):
        conv_block(4, 4, kernel=1, stride=2)
