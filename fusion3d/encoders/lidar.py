"""LiDAR branch: dynamic pillars, then strided convolutions down to the shared grid.

Letters: B samples, P points, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from fusion3d.config import LidarConfig
from fusion3d.encoders.blocks import ResidualBlock, conv_block
from fusion3d.encoders.pillars import PillarNet, rows_of, spread_rows
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid, PointCloud


class LidarEncoder(nn.Module):
    """Points to a map in the shared grid."""

    def __init__(self, config: LidarConfig, grid: BEVGrid) -> None:
        super().__init__()
        halvings = self._halvings(config.pillar, grid.resolution)
        fine = dataclasses.replace(grid, resolution=config.pillar)
        self.pillars = PillarNet(fine, 2, config.channels)
        self.down = nn.Sequential(
            *[conv_block(config.channels, config.channels, stride=2) for _ in range(halvings)],
            ResidualBlock(config.channels, config.channels),
        )
        self.channels = config.channels

    @staticmethod
    def _halvings(pillar: float, resolution: float) -> int:
        """How often the pillar grid is halved to become the shared grid."""
        for halvings in range(8):
            if abs(pillar * 2**halvings - resolution) < 1e-6 * resolution:
                return halvings
        raise ConfigError(
            f"lidar.pillar: {pillar} m does not divide grid.resolution {resolution} m by a power of two; "
            f"use {resolution / 2:g} or {resolution / 4:g}"
        )

    def forward(self, cloud: PointCloud) -> Tensor | None:
        """[B, C, Y, X], zero for the samples without LiDAR.

        When no sample has it: None, but for training, where processes may have to go through the layers together.
        """
        rows, sample_P = rows_of(cloud)
        if not len(rows) and not self.training:
            return None
        points = cloud.points
        map_BCYX = self.down(self.pillars(points[:, :3], points[:, 3:5], sample_P, len(rows)))
        return spread_rows(map_BCYX, rows, len(cloud.present))
