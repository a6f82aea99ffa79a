"""Radar branch: returns with reflectivity, Doppler velocity, age and validity to a map in the shared grid.

Letters: B samples that have the sensor, R returns, F features, C channels, Y X grid cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import RadarConfig
from fusion3d.encoders.blocks import ResidualBlock, conv_block
from fusion3d.encoders.clouds import CloudEncoder
from fusion3d.encoders.footprint import VELOCITY_CHANNELS, advance, spread_returns, velocity_map
from fusion3d.encoders.odometry import arrival_map, ego_velocity
from fusion3d.encoders.pillars import PillarNet
from fusion3d.encoders.streams import DualStream
from fusion3d.errors import ConfigError
from fusion3d.types import RADAR_FIELDS, BEVGrid

_NUM_DYN_PROP = (
    8  # moving, stationary, oncoming, stationary candidate, unknown, crossing stationary, crossing moving, stopped
)
NUM_FEATURES = 4 + 2 + _NUM_DYN_PROP


class RadarNet(nn.Module):
    """Returns to a map: moved to now, encoded, and beside it the velocities that were measured, as they were measured:
    those of what moves where it is, and the vehicle's own by when it would be where.

    Networks find it hard to carry a number through layers that normalise; kept in channels of its own, the velocity is
    there for every layer after. Maps of learned features come from one of the two encoders.
    """

    def __init__(self, config: RadarConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.config = config
        self.grid = grid
        measured = VELOCITY_CHANNELS * config.velocity + config.odometry
        learned = config.channels - measured
        if learned < 1:
            raise ConfigError(
                f"radar.channels: radar.velocity and radar.odometry take {measured} of {config.channels}; expected at "
                f"least {measured + 1}"
            )
        self.encoder = {"pillars": ReturnPillars, "dual": ReturnStreams}[config.encoder](config, grid)
        width = self.encoder.channels
        self.smooth = nn.Sequential(conv_block(width, config.channels), ResidualBlock(config.channels, learned))

    def forward(self, returns_RF: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """Returns [R, len(RADAR_FIELDS)] in ego and sample [R] ascending to a map [B, C, Y, X]."""
        if self.config.advance:
            returns_RF = advance(returns_RF)
        maps = [self.smooth(self.encoder(returns_RF, sample_R, num_samples))]
        if self.config.velocity:
            maps.append(velocity_map(returns_RF, sample_R, num_samples, self.grid, self.config.footprint))
        if self.config.odometry:
            own = ego_velocity(returns_RF, sample_R, num_samples)
            maps.append(arrival_map(*own, self.grid))
        return torch.cat([part.to(maps[0].dtype) for part in maps], dim=1)


class ReturnPillars(nn.Module):
    """Each return in its own cell (PointPillars)."""

    def __init__(self, config: RadarConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.channels = config.channels
        self.pillars = PillarNet(grid, NUM_FEATURES, config.channels)

    def forward(self, returns_RF: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """[R, F] to [B, C, Y, X]."""
        return self.pillars(returns_RF[:, :3], describe(returns_RF), sample_R, num_samples)


class ReturnStreams(nn.Module):
    """Two streams of features among the returns, then each return spread over what it stands for.

    RadarBEVNet of RCBEVDet (Lin et al., 2024). A cell's features are the mean of those that reach it, weighted by
    footprint, and fade where the weights sum to less than 1. One more channel is the logarithm of that sum.
    """

    def __init__(self, config: RadarConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.grid = grid
        self.footprint = config.footprint
        self.streams = DualStream(config.dual, NUM_FEATURES + 5)
        self.channels = config.dual.channels + 1

    def forward(self, returns_RF: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """[R, F] to [B, C, Y, X]."""
        grid = self.grid
        _, inside_R = grid.cell_of(returns_RF[:, :3])
        kept = inside_R.nonzero()[:, 0]
        returns_RF, sample_R = returns_RF[kept], sample_R[kept]
        with torch.autocast(returns_RF.device.type, enabled=False):
            steps_R2 = grid.place_of(returns_RF[:, :2])
            in_cell_R2 = steps_R2 - steps_R2.floor() - 0.5
            described_RF = torch.cat([describe(returns_RF), returns_RF[:, :3] / 10, in_cell_R2], dim=1)
        features_RC = self.streams(described_RF, returns_RF[:, :2], sample_R, num_samples).float()
        values_RC = torch.cat([features_RC, torch.ones_like(features_RC[:, :1])], dim=1)
        sums = spread_returns(values_RC, returns_RF, sample_R, num_samples, grid, self.footprint)
        total = sums[:, -1:]
        return torch.cat([sums[:, :-1] / total.clamp(min=1), total.log1p()], dim=1)


def describe(points_RF: Tensor) -> Tensor:
    """[R, len(RADAR_FIELDS)] to [R, 14]: RCS / 10 dBsm, velocity / 10 m/s, age [s], validity bits, motion one-hot.

    The bits say "valid" (invalid_state 0) and "unambiguous Doppler" (ambig_state 3); the raw returns are all kept,
    since the devkit's default filters also remove true ones. A motion code out of range has no bit set; a number that
    was not measured (NaN, infinite) is 0.
    """
    field = dict(zip(RADAR_FIELDS, points_RF.nan_to_num(0.0, 0.0, 0.0).unbind(1), strict=True))
    numbers = [field["rcs"] / 10, field["vx"] / 10, field["vy"] / 10, field["time"]]
    bits = [(field["invalid_state"] == 0).float(), (field["ambig_state"] == 3).float()]
    code = field["dyn_prop"].long()
    known = (code >= 0) & (code < _NUM_DYN_PROP)
    motion = F.one_hot(code.clamp(0, _NUM_DYN_PROP - 1), _NUM_DYN_PROP) * known[:, None]
    return torch.cat([torch.stack(numbers + bits, dim=1), motion.to(points_RF.dtype)], dim=1)


def make_radar(config: RadarConfig, grid: BEVGrid) -> CloudEncoder:
    """The branch that ``radar.encoder`` names: a cloud to [B, C, Y, X], or None where no sample has radar.

    Args:
        config: of the branch.
        grid: the shared one.

    Raises:
        ConfigError: settings that do not fit one another.
    """
    return CloudEncoder(RadarNet(config, grid), config.channels)
