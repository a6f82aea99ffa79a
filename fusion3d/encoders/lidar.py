"""LiDAR branch: which network turns points into a map in the shared grid.

Letters: B samples that have the sensor, P points, F numbers of a point, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from fusion3d.config import LidarConfig
from fusion3d.encoders.blocks import Norm, ResidualBlock, conv_block
from fusion3d.encoders.clouds import CloudEncoder, halvings
from fusion3d.encoders.pillars import PillarNet
from fusion3d.encoders.voxels import VoxelNet
from fusion3d.encoders.windows import WindowNet
from fusion3d.errors import ConfigError
from fusion3d.types import LIDAR_FIELDS, BEVGrid


class PillarMap(nn.Module):
    """Dynamic pillars, then strided convolutions down to the shared grid.

    Args:
        config: ``pillar`` and ``channels`` are read.
        grid: the shared one.
        num_features: F - 3, what is known of a point besides x, y, z.
        norm: of the convolutions.

    Raises:
        ConfigError: pillars that do not fit the grid.
    """

    def __init__(self, config: LidarConfig, grid: BEVGrid, num_features: int, norm: Norm = "batch") -> None:
        super().__init__()
        down = halvings(config.pillar, grid.resolution)
        if down is None or down < 0:
            raise ConfigError(
                f"lidar.pillar: {config.pillar} m does not divide grid.resolution {grid.resolution} m by a power of "
                f"two; use {grid.resolution / 2:g} or {grid.resolution / 4:g}"
            )
        fine = dataclasses.replace(grid, resolution=config.pillar)
        self.pillars = PillarNet(fine, num_features, config.channels)
        self.down = nn.Sequential(
            *[conv_block(config.channels, config.channels, stride=2, norm=norm) for _ in range(down)],
            ResidualBlock(config.channels, config.channels, norm=norm),
        )

    def forward(self, points_PF: Tensor, sample_P: Tensor, num_samples: int) -> Tensor:
        """Points [P, F], x, y, z [m] in ego first, and sample [P], to a map [B, C, Y, X]."""
        return self.down(self.pillars(points_PF[:, :3], points_PF[:, 3:], sample_P, num_samples))


_NETS = {"pillars": PillarMap, "voxels": VoxelNet, "windows": WindowNet}


def make_lidar(
    config: LidarConfig, grid: BEVGrid, num_features: int = len(LIDAR_FIELDS) - 3, norm: Norm = "batch"
) -> CloudEncoder:
    """The branch that ``lidar.encoder`` names: a cloud to [B, C, Y, X], or None where no sample has LiDAR.

    Args:
        config: of the branch.
        grid: the shared one.
        num_features: numbers of a point after x, y, z: intensity [0 to 1] and age [s].
        norm: "group" where the points are those of several sensors: nothing is then normalised over the batch.

    Raises:
        ConfigError: settings that do not fit one another, or the grid.
    """
    return CloudEncoder(_NETS[config.encoder](config, grid, num_features, norm), config.channels)
