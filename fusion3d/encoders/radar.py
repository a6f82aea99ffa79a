"""Radar branch: pillars with reflectivity, Doppler velocity, age and validity.

Letters: B samples, R returns, F features, C channels, Y X grid cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import RadarConfig
from fusion3d.encoders.blocks import ResidualBlock, conv_block
from fusion3d.encoders.pillars import PillarNet, rows_of, spread_rows
from fusion3d.types import RADAR_FIELDS, BEVGrid, PointCloud

_NUM_DYN_PROP = (
    8  # moving, stationary, oncoming, stationary candidate, unknown, crossing stationary, crossing moving, stopped
)


class RadarEncoder(nn.Module):
    """Radar returns to a map in the shared grid."""

    def __init__(self, config: RadarConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.pillars = PillarNet(grid, 4 + 2 + _NUM_DYN_PROP, config.channels)
        self.spread = nn.Sequential(
            conv_block(config.channels, config.channels), ResidualBlock(config.channels, config.channels)
        )
        self.channels = config.channels

    def forward(self, cloud: PointCloud) -> Tensor | None:
        """[B, C, Y, X], zero for the samples without radar; when no sample has it, as in ``LidarEncoder``."""
        rows, sample_R = rows_of(cloud)
        if not len(rows) and not self.training:
            return None
        map_BCYX = self.spread(self.pillars(cloud.points[:, :3], describe(cloud.points), sample_R, len(rows)))
        return spread_rows(map_BCYX, rows, len(cloud.present))


def describe(points_RF: Tensor) -> Tensor:
    """[R, len(RADAR_FIELDS)] to [R, 14]: RCS / 10 dBsm, velocity / 10 m/s, age [s], validity bits, motion one-hot.

    The bits say "valid" (invalid_state 0) and "unambiguous Doppler" (ambig_state 3); the raw returns are all kept,
    since the devkit's default filters also remove true ones. A motion code out of range has no bit set.
    """
    field = dict(zip(RADAR_FIELDS, points_RF.unbind(1), strict=True))
    numbers = [field["rcs"] / 10, field["vx"] / 10, field["vy"] / 10, field["time"]]
    bits = [(field["invalid_state"] == 0).float(), (field["ambig_state"] == 3).float()]
    code = field["dyn_prop"].long()
    known = (code >= 0) & (code < _NUM_DYN_PROP)
    motion = F.one_hot(code.clamp(0, _NUM_DYN_PROP - 1), _NUM_DYN_PROP) * known[:, None]
    return torch.cat([torch.stack(numbers + bits, dim=1), motion.to(points_RF.dtype)], dim=1)
