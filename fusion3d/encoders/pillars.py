"""Points to a bird's-eye map through dynamic pillars: no limit on points per pillar or on pillars.

Letters: B samples that have the sensor, P points, F features of a point, Q pillars that hold a
point, C channels, Y X grid cells (N of them in all).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid, PointCloud


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
        rows, cols = self.grid.shape
        num_cells = num_samples * rows * cols
        cell_P, inside_P = self.grid.cell_of(xyz_P3)
        plan = ops.segment_plan(torch.where(inside_P, cell_P + sample_P * (rows * cols), -1), num_cells)
        # Points of one pillar side by side, and those outside left out: then what is read is near, and NaN cannot harm.
        order_P, plan = plan.order, plan.sorted()
        with torch.autocast(xyz_P3.device.type, enabled=False):
            described_PF = self.describe(xyz_P3[order_P], features_PF[order_P], plan)
        values_PC = self.net(described_PF).float()
        pillars_QC = torch.cat([ops.segment_reduce(values_PC, plan, how) for how in ("max", "mean")], dim=1)
        map_NC = values_PC.new_zeros(num_cells, pillars_QC.shape[1]).index_copy(0, plan.key, pillars_QC)
        return map_NC.view(num_samples, rows, cols, map_NC.shape[1]).permute(0, 3, 1, 2)

    def describe(self, xyz_P3: Tensor, features_PF: Tensor, plan: ops.SegmentPlan) -> Tensor:
        """[P, F + 8]: features, position / 10 m, offset from the pillar's mean [m] and from its centre [pillars].

        Every point must be in a pillar of the plan.
        """
        grid = self.grid
        offset_P3 = xyz_P3 - ops.segment_reduce(xyz_P3, plan, "mean")[plan.segment]
        low = xyz_P3.new_tensor([grid.x[0], grid.y[0]])
        steps_P2 = (xyz_P3[:, :2] - low) / grid.resolution
        return torch.cat([features_PF, xyz_P3 / 10, offset_P3, steps_P2 - steps_P2.floor() - 0.5], dim=1)


def rows_of(cloud: PointCloud) -> tuple[Tensor, Tensor]:
    """Samples that have the sensor, counted anew: [B] int64 row in the batch of each, and [P] its number per point."""
    rows = cloud.present.nonzero()[:, 0]
    return rows, (cloud.present.cumsum(0) - 1)[cloud.batch_index]


def spread_rows(map_BCYX: Tensor, rows: Tensor, size: int) -> Tensor:
    """Maps of the samples ``rows`` put back in a batch of ``size``; the other samples' maps are zero."""
    if map_BCYX.shape[0] == size:
        return map_BCYX
    full = map_BCYX.new_zeros(size, *map_BCYX.shape[1:]).contiguous(memory_format=torch.channels_last)
    return full.index_copy(0, rows, map_BCYX)
