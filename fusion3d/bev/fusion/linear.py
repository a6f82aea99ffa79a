"""Operators that add up what the sensors say: concat, add, weighted.

Letters: B samples, S sensors, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion3d.bev.fusion.entry import Projections, absent_vectors, fill_absent, shares, weighted_sum
from fusion3d.encoders.blocks import conv_block
from fusion3d.types import BEVGrid


class ConcatFusion(nn.Module):
    """Stack and convolve; a learned vector stands in every cell of a sensor that is absent."""

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.absent = absent_vectors(inputs)
        self.mix = conv_block(sum(inputs), channels, kernel=1, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        filled = fill_absent(maps, present, self.absent, self.shape)
        return self.mix(torch.cat(filled, dim=1).contiguous(memory_format=torch.channels_last))


class AddFusion(nn.Module):
    """Sum of the sensors' maps in one width; a learned vector is added for a sensor that is absent.

    As the sum of BEVFusion's second fuser (Liu et al., 2023), which divides by how many sensors there are; here the
    normalisation after the convolution makes that needless.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.project = Projections(inputs, channels)
        self.absent = absent_vectors([channels] * len(inputs))
        self.mix = conv_block(channels, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        total_BCYX, *others = fill_absent(self.project(maps, present), present, self.absent, self.shape)
        for other_BCYX in others:
            total_BCYX = total_BCYX + other_BCYX
        return self.mix(total_BCYX.contiguous(memory_format=torch.channels_last))


class WeightedFusion(nn.Module):
    """Mean with learned weights, per channel, normalised over the sensors that are there.

    Channel-normalised weights of UniBEV (Wang et al., 2024). A sample without any sensor gets a map of zeros.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.project = Projections(inputs, channels)
        self.weight = nn.Parameter(torch.zeros(len(inputs), channels))
        self.mix = conv_block(channels, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        mean_BCYX = weighted_sum(self.project(maps, present), shares(self.weight, present), self.shape)
        return self.mix(mean_BCYX.contiguous(memory_format=torch.channels_last))
