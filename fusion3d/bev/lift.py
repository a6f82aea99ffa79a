"""Lift-splat: image features go out along their depth distribution and fall into the grid; and the depth's targets.

Letters: B samples, M images (packed), P points, C channels, D depth bins, H W feature rows and columns, Y X cells.
All geometry is float32 or better, whatever the autocast type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.plans import PlanCache
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import Norm, conv_block
from fusion3d.encoders.clouds import spread_rows
from fusion3d.encoders.depth import CameraFeatures
from fusion3d.encoders.raster import nearest_depth
from fusion3d.errors import ConfigError
from fusion3d.geometry.rays import pixel_rays
from fusion3d.types import KEY_SWEEP, LIDAR_FIELDS, BEVGrid, Cameras, PointCloud


@dataclass(frozen=True)
class DepthBins:
    """Bin i covers [first + i step, first + (i + 1) step) of depth along the optical axis [m]."""

    first: float
    last: float
    step: float

    def __post_init__(self) -> None:
        if not (self.first > 0 and self.step > 0 and self.last >= self.first + self.step):
            raise ConfigError(
                f"camera.depth: found first edge {self.first}, last edge {self.last}, step {self.step} m; "
                "expected 0 < first < last and a positive step that fits between them"
            )
        steps = (self.last - self.first) / self.step
        if abs(steps - round(steps)) > 1e-4:
            raise ConfigError(
                f"camera.depth: found {steps:.3f} steps of {self.step} m from {self.first} to {self.last}; expected a "
                "whole number"
            )

    def __len__(self) -> int:
        return round((self.last - self.first) / self.step)

    def centers(self, device: torch.device | str = "cpu") -> Tensor:
        """[D] float32 depth of the middle of every bin [m]."""
        return self.first + (torch.arange(len(self), device=device) + 0.5) * self.step

    def index_of(self, depth: Tensor) -> Tensor:
        """[...] depths [m] to [...] int64 bins, -1 outside of them all."""
        index = torch.floor((depth - self.first) / self.step)
        return torch.where((index >= 0) & (index < len(self)), index, -1).long()


class LiftSplat(nn.Module):
    """Camera features to a map in the shared grid (Philion and Fidler, "Lift, Splat, Shoot", 2020).

    ``norm`` is "group" where another sensor has had its say in the depth.
    """

    def __init__(self, bins: DepthBins, grid: BEVGrid, stride: int, channels: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.bins = bins
        self.grid = grid
        self.stride = stride
        self.channels = channels
        self.smooth = conv_block(channels, channels, norm=norm)
        self.plans = PlanCache()

    def forward(
        self, features: CameraFeatures, cameras: Cameras, num_samples: int, radar: PointCloud | None = None
    ) -> Tensor:
        """Features of M images to [B, C, Y, X], zero for the samples without a camera; radar is not looked at."""
        rows, sample_M = torch.unique(cameras.batch_index, return_inverse=True)
        map_BCYX = self.lift(features, cameras, rows, sample_M, radar)
        return spread_rows(self.smooth(map_BCYX), rows, num_samples)

    def lift(
        self, features: CameraFeatures, cameras: Cameras, rows: Tensor, sample_M: Tensor, radar: PointCloud | None
    ) -> Tensor:
        """The map of the samples that have a camera: ``rows`` of the batch, counted anew in ``sample_M``."""
        assert features.depth is not None, "the encoder was made without depth bins"
        with torch.autocast(features.depth.device.type, enabled=False):
            depth_MDHW = features.depth.float().softmax(1)
            return self.splat(depth_MDHW, features.context.float(), cameras, sample_M, len(rows))

    def splat(
        self, depth_MDHW: Tensor, context_MCHW: Tensor, cameras: Cameras, sample_M: Tensor, num_samples: int
    ) -> Tensor:
        """Sum, in every cell, depth probability times context over the frustum points that fall in it."""
        plan = self.plan(cameras, sample_M, num_samples, (depth_MDHW.shape[2], depth_MDHW.shape[3]))
        rows, cols = self.grid.shape
        map_NC = ops.bev_pool(depth_MDHW, context_MCHW, plan)
        return map_NC.view(num_samples, rows, cols, map_NC.shape[1]).permute(0, 3, 1, 2)

    def plan(self, cameras: Cameras, sample_M: Tensor, num_samples: int, shape: tuple[int, int]) -> ops.BEVPoolPlan:
        """Which frustum points fall in which cell.

        In evaluation a plan is kept for each calibration and found again by the bytes of the matrices, which takes a
        host read on CUDA. It is made anew in training, where augmentation changes the calibration in every step, and
        where the host may not look: in a traced or captured graph.
        """

        def make() -> ops.BEVPoolPlan:
            rows, cols = self.grid.shape
            cell_MDHW, inside_MDHW = self.grid.cell_of(self.frustum(cameras, shape))
            cell_MDHW += sample_M[:, None, None, None] * (rows * cols)
            cell_MDHW.masked_fill_(~inside_MDHW, -1)
            return ops.bev_pool_plan(cell_MDHW, num_samples * rows * cols, cols)

        captured = sample_M.is_cuda and torch.cuda.is_current_stream_capturing()
        if self.training or torch.compiler.is_compiling() or captured:
            return make()
        settings = (self.bins, self.grid, self.stride, num_samples, shape)
        return self.plans.get((cameras.image_from_cam, cameras.ego_from_cam, sample_M), settings, make)

    def frustum(self, cameras: Cameras, shape: tuple[int, int]) -> Tensor:
        """[M, D, H, W, 3] float32: where in ego every feature cell would be at every depth bin's middle [m]."""
        origin_M3, ray_MHW3 = pixel_rays(cameras.image_from_cam, cameras.ego_from_cam, shape, self.stride)
        depth_D = self.bins.centers(ray_MHW3.device)
        # x, y and z each side by side in memory, as they are read.
        xyz_3MDHW = depth_D[:, None, None] * ray_MHW3.movedim(-1, 0).contiguous()[:, :, None]
        xyz_3MDHW += origin_M3.T[:, :, None, None, None]
        return xyz_3MDHW.movedim(0, -1)


@dataclass(frozen=True)
class DepthOutput:
    """Depth logits of the images that were seen, with the cameras that they are about."""

    logits: Tensor  # [M, D, H, W]
    cameras: Cameras


@torch.no_grad()
def depth_targets(cameras: Cameras, lidar: PointCloud, bins: DepthBins, shape: tuple[int, int], stride: int) -> Tensor:
    """The depth bin of the nearest LiDAR point in every feature cell.

    Only the key sweep's points are used: those of older sweeps on moving objects are elsewhere by now.

    Args:
        cameras: M images.
        lidar: points of the same batch.
        bins: depth bins.
        shape: rows and columns of the feature map.
        stride: pixels per feature cell.

    Returns:
        [M, H, W] int64, -1 where no point falls or the nearest one is outside of the bins.
    """
    key_P = lidar.points[:, LIDAR_FIELDS.index("time")].abs() < KEY_SWEEP
    key = PointCloud(lidar.points[key_P], lidar.batch_index[key_P], lidar.present)
    return bins.index_of(nearest_depth(cameras, key, torch.zeros_like(key.batch_index), 1, shape, stride)[:, 0])


def depth_loss(output: DepthOutput, lidar: PointCloud | None, bins: DepthBins, stride: int) -> Tensor:
    """Cross-entropy of the depth bins, mean over the feature cells that a LiDAR point falls in; 0 if there is none."""
    logits_MDHW = output.logits.float()
    if lidar is None:
        return 0.0 * logits_MDHW.sum()
    shape = (logits_MDHW.shape[2], logits_MDHW.shape[3])
    target_MHW = depth_targets(output.cameras, lidar, bins, shape, stride)
    # Written out, since the built-in loss over images has no deterministic kernel on CUDA.
    log_MDHW, known_MHW = logits_MDHW.log_softmax(1), target_MHW >= 0
    said_MHW = log_MDHW.gather(1, target_MHW.clamp(min=0)[:, None])[:, 0]
    return -(said_MHW * known_MHW).sum() / divisor("depth", known_MHW.sum())
