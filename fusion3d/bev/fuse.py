"""The sensors' maps become one. An absent sensor is known to be absent: it is never a map of zeros.

Both operators take, in a fixed order of sensors, each one's map (None where no sample of the batch has the sensor)
and which samples have it. What the map holds for a sample without the sensor is not looked at.
Letters: B samples, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion3d.config import FusionConfig
from fusion3d.encoders.blocks import conv_block
from fusion3d.types import BEVGrid


class ConcatFusion(nn.Module):
    """Stack and convolve; a learned vector stands in every cell of a sensor that is absent."""

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.absent = nn.ParameterList(nn.Parameter(0.02 * torch.randn(count)) for count in inputs)
        self.mix = conv_block(sum(inputs), channels, kernel=1, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        filled = []
        for map_BCYX, present_B, absent_C in zip(maps, present, self.absent, strict=True):
            absent_BCYX = absent_C[:, None, None].expand(len(present_B), -1, *self.shape)
            if map_BCYX is not None:
                absent_BCYX = torch.where(present_B[:, None, None, None], map_BCYX, absent_BCYX.to(map_BCYX.dtype))
            filled.append(absent_BCYX)
        return self.mix(torch.cat(filled, dim=1).contiguous(memory_format=torch.channels_last))


class WeightedFusion(nn.Module):
    """Mean with learned weights, per channel, normalised over the sensors that are there.

    Channel-normalised weights of UniBEV (Wang et al., 2024). A sample without any sensor gets a map of zeros.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.project = nn.ModuleList(conv_block(count, channels, kernel=1, norm="group") for count in inputs)
        self.weight = nn.Parameter(torch.zeros(len(inputs), channels))
        self.mix = conv_block(channels, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        fused = self.weight.new_zeros(len(present[0]), self.weight.shape[1], *self.shape)
        weight_SBC = self.weights(present)
        for map_BCYX, present_B, weight_BC, project in zip(maps, present, weight_SBC, self.project, strict=True):
            if map_BCYX is not None:
                projected_BCYX = project(map_BCYX).masked_fill(~present_B[:, None, None, None], 0)
                fused = fused + weight_BC[:, :, None, None] * projected_BCYX
        return self.mix(fused.contiguous(memory_format=torch.channels_last))

    def weights(self, present: Sequence[Tensor]) -> Tensor:
        """[S, B, C] weight of every sensor for every sample; each channel's sum is 1 wherever a sensor is there."""
        present_SB1 = torch.stack(list(present))[..., None]
        score_SBC = self.weight[:, None].exp() * present_SB1
        return score_SBC / score_SBC.sum(0, keepdim=True).clamp(min=1e-6)


def make_fusion(config: FusionConfig, inputs: Sequence[int], grid: BEVGrid) -> ConcatFusion | WeightedFusion:
    """The operator that the configuration names, for sensors with ``inputs`` channels."""
    return {"concat": ConcatFusion, "weighted": WeightedFusion}[config.operator](inputs, config.channels, grid)
