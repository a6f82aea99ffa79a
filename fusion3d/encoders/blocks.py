"""The few convolution blocks that every network here is made of. Letters: B batch, C channels, H W rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "group"]


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """A normalisation layer for [B, C, H, W].

    ``batch`` inside the branch of one sensor, whose statistics are always that sensor's own. ``group`` wherever
    sensors have met: statistics of a batch would there depend on which sensors its other samples happen to have.
    One group, because the backward pass of more is many times slower on CPU in channels-last order.
    """
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(1, channels)


class Subsampled1x1(nn.Conv2d):
    """A strided 1x1 convolution without bias, as an unstrided one of every ``step``-th row and column.

    The same numbers and the same weights. oneDNN's strided one (torch 2.13, CPU) writes out of bounds in its backward
    pass for few channels in channels-last order.
    """

    def __init__(self, inputs: int, outputs: int, step: int) -> None:
        super().__init__(inputs, outputs, 1, bias=False)
        self.step = step

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, ceil(H / step), ceil(W / step)]."""
        return super().forward(x_BCHW[..., :: self.step, :: self.step])


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, norm: Norm = "batch") -> nn.Sequential:
    """Convolution, normalisation, ReLU; the size shrinks by ``stride`` (rounded up)."""
    assert kernel > 1 or stride == 1, "a strided 1x1 convolution is a Subsampled1x1"
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        make_norm(norm, outputs),
        nn.ReLU(inplace=True),
    )


class TopDown(nn.Module):
    """Feature pyramid (Lin et al., 2017), of which only the finest map is made."""

    def __init__(self, inputs: Sequence[int], channels: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in inputs)
        self.out = conv_block(channels, channels, norm=norm)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps from fine to coarse to one [B, channels, H, W] of the finest one's size."""
        x_BCHW = self.laterals[-1](maps[-1])
        for lateral, finer in zip(reversed(self.laterals[:-1]), reversed(maps[:-1]), strict=True):
            x_BCHW = lateral(finer) + F.interpolate(x_BCHW, size=finer.shape[-2:], mode="nearest")
        return self.out(x_BCHW)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (1x1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: Norm = "batch") -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_block(inputs, outputs, stride=stride, norm=norm),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            make_norm(norm, outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(Subsampled1x1(inputs, outputs, stride), make_norm(norm, outputs))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        return self.relu(self.body(x_BCHW) + self.shortcut(x_BCHW))
