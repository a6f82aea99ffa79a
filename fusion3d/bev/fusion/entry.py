"""How sensors' maps come into an operator, and what stands where a sensor is absent.

Letters: B samples, S sensors, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fusion3d.encoders.blocks import conv_block


class Projections(nn.ModuleList):
    """Each sensor's map to one width by a 1x1 convolution of its own; zero in the samples that lack the sensor."""

    def __init__(self, inputs: Iterable[int], channels: int) -> None:
        super().__init__(conv_block(count, channels, kernel=1, norm="group") for count in inputs)

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> list[Tensor | None]:
        """Maps [B, C_i, Y, X] and [B] bool each, to maps [B, channels, Y, X]; None stays None."""
        return [
            None if map_BCYX is None else only_present(project(map_BCYX), present_B)
            for project, map_BCYX, present_B in zip(self, maps, present, strict=True)
        ]


def only_present(map_BCYX: Tensor, present_B: Tensor) -> Tensor:
    """The map, with zeros in the samples that lack the sensor, whatever stood there."""
    return map_BCYX.masked_fill(~present_B[:, None, None, None], 0)


def absent_vectors(widths: Iterable[int]) -> nn.ParameterList:
    """For each sensor a vector to learn, that stands in every cell where the sensor is absent."""
    return nn.ParameterList(nn.Parameter(0.02 * torch.randn(width)) for width in widths)


def fill_absent(
    maps: Sequence[Tensor | None], present: Sequence[Tensor], absent: nn.ParameterList, shape: tuple[int, int]
) -> list[Tensor]:
    """Maps [B, C_i, Y, X] of all sensors, with the sensor's vector of ``absent`` in the samples that lack it."""
    filled = []
    for map_BCYX, present_B, absent_C in zip(maps, present, absent, strict=True):
        absent_BCYX = absent_C[:, None, None].expand(len(present_B), -1, *shape)
        if map_BCYX is not None:
            absent_BCYX = torch.where(present_B[:, None, None, None], map_BCYX, absent_BCYX.to(map_BCYX.dtype))
        filled.append(absent_BCYX)
    return filled


def shares(score_SC: Tensor, present: Sequence[Tensor]) -> Tensor:
    """[S, B, C] weight of every sensor: a softmax of the scores over the sensors that a sample has; 0 where none is."""
    present_SB1 = torch.stack(list(present))[..., None]
    weight_SBC = score_SC[:, None].exp() * present_SB1
    return weight_SBC / weight_SBC.sum(0, keepdim=True).clamp(min=1e-6)


def weighted_sum(maps: Sequence[Tensor | None], weight_SBC: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, C, Y, X]: the sum over the sensors of weight times map, zero in the samples that lack it."""
    total = weight_SBC.new_zeros(*weight_SBC.shape[1:], *shape)
    for map_BCYX, weight_BC in zip(maps, weight_SBC, strict=True):
        if map_BCYX is not None:
            total = total + weight_BC[:, :, None, None] * map_BCYX
    return total
