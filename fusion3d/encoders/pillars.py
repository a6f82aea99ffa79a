"""Points to a bird's-eye map through dynamic pillars: no limit on points per pillar or on pillars.

Letters: B samples that have the sensor, P points, F features of a point, Q pillars that hold a
point, C channels, Y X grid cells (N of them in all).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid


class PillarNet(nn.Module):
    """A small network per point, then the maximum and the mean over the points of each cell.

    PointPillars (Lang et al., 2019) with dynamic voxelisation (Zhou et al., 2020). A point is described by what its
    sensor says, its position, and its offsets from the mean and from the centre of its pillar. The normalisation is
    per point (LayerNorm), so a cloud of one point, or of none, trains like any other.
    """

    def __init__(self, grid: BEVGrid, num_features: int, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ConfigError(
                f"pillar channels: half are maxima and half means; expected an even number, found {channels}"
            )
        self.grid = grid
        self.net = nn.Sequential(
            nn.Linear(num_features + 8, channels // 2, bias=False), nn.LayerNorm(channels // 2), nn.ReLU()
        )

    def forward(self, xyz_P3: Tensor, features_PF: Tensor, sample_P: Tensor, num_samples: int) -> Tensor:
        """Points [P, 3] in ego [m] with features [P, F] and sample [P] to a map [B, C, Y, X]; empty cells are 0."""
        return self.map_of(*self.pillars(xyz_P3, features_PF, sample_P, num_samples), num_samples)

    def pillars(self, xyz_P3: Tensor, features_PF: Tensor, sample_P: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """The pillars alone: [Q, C] and flat cell [Q] int64, (sample * Y + iy) * X + ix, ascending."""
        rows, cols = self.grid.shape
        cell_P, inside_P = self.grid.cell_of(xyz_P3)
        key_P = torch.where(inside_P, cell_P + sample_P * (rows * cols), -1)
        plan = ops.segment_plan(key_P, num_samples * rows * cols)
        # Points of one pillar side by side, and those outside left out: then what is read is near, and NaN cannot harm.
        order_P, plan = plan.order, plan.sorted()
        with torch.autocast(xyz_P3.device.type, enabled=False):
            described_PF = self.describe(xyz_P3[order_P], features_PF[order_P], plan)
        values_PC = self.net(described_PF).float()
        return torch.cat([ops.segment_reduce(values_PC, plan, how) for how in ("max", "mean")], dim=1), plan.key

    def map_of(self, pillars_QC: Tensor, cell_Q: Tensor, num_samples: int) -> Tensor:
        """[B, C, Y, X] with the pillars in their cells, 0 elsewhere."""
        rows, cols = self.grid.shape
        map_NC = pillars_QC.new_zeros(num_samples * rows * cols, pillars_QC.shape[1])
        map_NC = map_NC.index_copy(0, cell_Q, pillars_QC)
        return map_NC.view(num_samples, rows, cols, map_NC.shape[1]).permute(0, 3, 1, 2)

    def describe(self, xyz_P3: Tensor, features_PF: Tensor, plan: ops.SegmentPlan) -> Tensor:
        """[P, F + 8]: features, position / 10 m, offset from the pillar's mean [m] and from its centre [pillars].

        Every point must be in a pillar of the plan. A feature that is NaN or infinite was not measured, and is 0.
        """
        features_PF = features_PF.nan_to_num(0.0, 0.0, 0.0)
        offset_P3 = xyz_P3 - ops.segment_reduce(xyz_P3, plan, "mean")[plan.segment]
        steps_P2 = self.grid.place_of(xyz_P3[:, :2])
        return torch.cat([features_PF, xyz_P3 / 10, offset_P3, steps_P2 - steps_P2.floor() - 0.5], dim=1)
