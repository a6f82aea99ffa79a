"""Lift-splat helped by radar: features go out along the depth that the image suggests, and to where radar echoes.

Letters: B samples, M images (packed), R returns in images, F features of a return, C channels, D depth bins, H W
feature rows and columns, Y X cells.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.lift import DepthBins, LiftSplat
from fusion3d.encoders.blocks import ResidualBlock, conv_block
from fusion3d.encoders.depth import CameraFeatures
from fusion3d.encoders.footprint import advance
from fusion3d.encoders.radar import NUM_FEATURES, describe
from fusion3d.encoders.raster import seen_points
from fusion3d.types import RADAR_FIELDS, BEVGrid, Cameras, PointCloud

_WIDTH = 32  # channels of the radar's view


class RadarLift(LiftSplat):
    """Radar-assisted view transform (CRN, Kim et al., 2023).

    Radar returns fall into image columns x depth bins; a small network makes of them, for every column, how likely each
    bin is occupied. Context goes out along the image's depth distribution and, once more, along this occupancy, the
    same for all rows, since radar does not measure height. CRN joins the two products in the frustum, before pooling;
    pooling is linear, so here each is pooled and they meet in the grid, and no frustum of features is ever made.
    Where a sample has no radar its map is the plain lift's. With ``moving``, returns are first moved to where they
    should be now, as in the radar's own branch.
    """

    def __init__(self, bins: DepthBins, grid: BEVGrid, stride: int, channels: int, moving: bool = True) -> None:
        super().__init__(bins, grid, stride, channels, norm="group")
        self.moving = moving
        self.occupancy = FrustumOccupancy(bins, stride)
        self.join = conv_block(2 * channels, channels, kernel=1, norm="group")

    def lift(
        self, features: CameraFeatures, cameras: Cameras, rows: Tensor, sample_M: Tensor, radar: PointCloud | None
    ) -> Tensor:
        """The plain lift, with what stands along the occupancy where a sample has radar."""
        map_BCYX = super().lift(features, cameras, rows, sample_M, radar)
        if radar is None:
            return map_BCYX
        if self.moving:
            radar = replace(radar, points=advance(radar.points))
        context_MCHW = features.context.float()
        num_rows, num_cols = context_MCHW.shape[2:]
        occupancy_MDW = self.occupancy(cameras, radar, num_cols)
        with torch.autocast(context_MCHW.device.type, enabled=False):
            occupancy_MDHW = occupancy_MDW.float()[:, :, None].expand(-1, -1, num_rows, -1)
            seen_BCYX = self.splat(occupancy_MDHW, context_MCHW, cameras, sample_M, len(rows))
        joined_BCYX = self.join(torch.cat([map_BCYX, seen_BCYX], dim=1))
        return torch.where(radar.present[rows][:, None, None, None], map_BCYX + joined_BCYX, map_BCYX)


class FrustumOccupancy(nn.Module):
    """Radar returns to how likely each depth bin of each image column is occupied."""

    def __init__(self, bins: DepthBins, stride: int) -> None:
        super().__init__()
        self.bins = bins
        self.stride = stride
        self.point = nn.Sequential(nn.Linear(NUM_FEATURES + 3, _WIDTH), nn.LayerNorm(_WIDTH), nn.ReLU())
        self.spread = nn.Sequential(
            ResidualBlock(_WIDTH, _WIDTH, norm="group"), ResidualBlock(_WIDTH, _WIDTH, norm="group")
        )
        self.out = nn.Conv2d(_WIDTH, 1, 1)
        nn.init.constant_(self.out.bias, -math.log(len(bins)))  # type: ignore[arg-type]  # about one bin of a column

    def forward(self, cameras: Cameras, radar: PointCloud, num_cols: int) -> Tensor:
        """[M, D, W] in [0, 1]; for images whose sample has no radar it means nothing."""
        num_images, num_bins = len(cameras.batch_index), len(self.bins)
        cell_R, features_RF = frustum_returns(cameras, radar, self.bins, self.stride, num_cols)
        # Sorted, and those outside left out: NaN cannot harm.
        plan = ops.segment_plan(cell_R, num_images * num_bins * num_cols)
        order_R, plan = plan.order, plan.sorted()
        values_RC = self.point(features_RF[order_R]).float()
        filled_QC = ops.segment_reduce(values_RC, plan, "max")
        view_NC = values_RC.new_zeros(num_images * num_bins * num_cols, _WIDTH).index_copy(0, plan.key, filled_QC)
        view_MCDW = view_NC.view(num_images, num_bins, num_cols, _WIDTH).permute(0, 3, 1, 2)
        return self.out(self.spread(view_MCDW)).sigmoid()[:, 0]


def frustum_returns(
    cameras: Cameras, radar: PointCloud, bins: DepthBins, stride: int, num_cols: int
) -> tuple[Tensor, Tensor]:
    """Radar returns in the columns and depth bins of every image that may see them, whatever their height.

    Velocities are turned into the camera's own axes, right and forward, so that a turned or mirrored rig sees the same.

    Returns:
        Cell (image * D + bin) * W + column of each return in each image, [R] int64, -1 where it is in none; and [R, F]
        what ``radar.describe`` says of it, its depth / 10 m and its place inside of the bin and of the column [cells].
    """
    right_and_forward = cameras.ego_from_cam[:, :2][:, :, [0, 2]]
    axes_M22 = right_and_forward / cameras.ego_from_cam[:, :3, :3].norm(dim=1)[:, None, [0, 2]]
    speed = [RADAR_FIELDS.index("vx"), RADAR_FIELDS.index("vy")]
    cells = [torch.zeros(0, dtype=torch.int64, device=radar.points.device)]  # where there is no image at all
    features = [radar.points.new_zeros(0, NUM_FEATURES + 3)]
    for image_P, u_P, _, depth_P in seen_points(cameras, radar):
        place_P, steps_P = (u_P + 0.5) / stride, (depth_P - bins.first) / bins.step
        bin_P, col_P = bins.index_of(depth_P), torch.floor(place_P)
        inside_P = (bin_P >= 0) & (col_P >= 0) & (col_P < num_cols)
        cell_P = (image_P * len(bins) + bin_P) * num_cols + col_P.nan_to_num(0).clamp(0, num_cols - 1).long()
        cells.append(torch.where(inside_P, cell_P, -1))
        turned_PF = radar.points.clone()
        turned_PF[:, speed] = (axes_M22[image_P.clamp(min=0)] * radar.points[:, speed, None]).sum(1)
        numbers_P3 = torch.stack([depth_P / 10, steps_P % 1 - 0.5, place_P % 1 - 0.5], dim=1)
        features.append(torch.cat([describe(turned_PF), numbers_P3], dim=1))
    return torch.cat(cells), torch.cat(features)
