"""Fusion at several scales: each sensor has a pyramid of its own, and every floor of it is fused.

Letters: B samples, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fusion3d.encoders.blocks import ResidualBlock, TopDown
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid


class HierarchicalFusion(nn.Module):
    """An operator at full, half, a quarter ... resolution; the fused maps are brought together at full size (FPN).

    Deep layers of one sensor's branch meet deep layers of the others', as in TransFuser (Prakash et al., 2021); what
    differs is that every scale is fused by the operator of the configuration, and the branches stay apart.
    """

    def __init__(
        self,
        make: Callable[[Sequence[int], BEVGrid], nn.Module],
        inputs: Sequence[int],
        channels: int,
        grid: BEVGrid,
        scales: int,
    ) -> None:
        """``make(inputs, grid)`` gives the operator of one scale, to ``channels`` channels."""
        super().__init__()
        for name, count in zip(("y", "x"), grid.shape, strict=True):
            if count % 2 ** (scales - 1):
                raise ConfigError(
                    f"fusion.scales: found {scales}, but grid.{name} has {count} cells, which cannot be halved "
                    f"{scales - 1} times; take fewer scales or another grid"
                )
        self.down = nn.ModuleList(
            nn.ModuleList(ResidualBlock(count, count, stride=2, norm="group") for count in inputs)
            for _ in range(scales - 1)
        )
        grids = [dataclasses.replace(grid, resolution=grid.resolution * 2**scale) for scale in range(scales)]
        self.fuse = nn.ModuleList(make(inputs, at_scale) for at_scale in grids)
        self.join = TopDown([channels] * scales, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] or None and [B] bool each, to [B, channels, Y, X]."""
        fused = [self.fuse[0](maps, present)]
        for down, fuse in zip(self.down, self.fuse[1:], strict=True):
            maps = [
                None if map_BCYX is None else shrink(map_BCYX)
                for shrink, map_BCYX in zip(down, maps, strict=True)  # type: ignore[arg-type]
            ]
            fused.append(fuse(maps, present))
        return self.join(fused)
