"""The convolutions between the fused map and the heads. Letters: B samples, C channels, Y X grid cells."""

from __future__ import annotations

from torch import Tensor, nn

from fusion3d.config import TrunkConfig
from fusion3d.encoders.blocks import ResidualBlock, TopDown
from fusion3d.errors import ConfigError


class Trunk(nn.Module):
    """Residual stages, each at half the size of the one before, brought together again at full size (FPN)."""

    def __init__(self, config: TrunkConfig, inputs: int) -> None:
        super().__init__()
        if not config.blocks:
            raise ConfigError("trunk.blocks: found none; expected the number of residual blocks of at least one scale")
        self.stages = nn.ModuleList()
        widths = [config.channels * 2**scale for scale in range(len(config.blocks))]
        for scale, (count, width) in enumerate(zip(config.blocks, widths, strict=True)):
            if count < 1:
                raise ConfigError(f"trunk.blocks: found {config.blocks}; expected at least one block at each scale")
            first = ResidualBlock(inputs, width, stride=2 if scale else 1, norm="group")
            rest = [ResidualBlock(width, width, norm="group") for _ in range(count - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            inputs = width
        self.join = TopDown(widths, config.out_channels, norm="group")

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """[B, inputs, Y, X] to [B, out_channels, Y, X]; any Y and X."""
        maps = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            maps.append(map_BCYX)
        return self.join(maps)
