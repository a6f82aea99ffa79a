"""From what an image shows to what is there and how far away it is.

Letters: M images (packed), C channels, D depth bins, H W feature rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import CameraConfig
from fusion3d.encoders.blocks import Norm, ResidualBlock, conv_block
from fusion3d.encoders.raster import nearest_depth
from fusion3d.geometry.rays import pixel_rays
from fusion3d.types import KEY_SWEEP, LIDAR_FIELDS, Cameras, PointCloud

_NUM_RAY = 4  # channels that tell the network where each cell looks
_NUM_LENS = 6  # numbers that describe a lens
_NUM_MOUNT = 12  # numbers that describe where a camera sits and looks
_NUM_SPARSE = 5  # channels of the sparse depth image


@dataclass(frozen=True)
class CameraFeatures:
    """What the camera encoder knows of M images."""

    context: Tensor  # [M, C, H, W] what is there
    depth: Tensor | None  # [M, D, H, W] logits over the depth bins; None where the view needs none


class DepthNet(nn.Module):
    """Context and depth in one convolution.

    Depth from one image needs the lens and the mounting: the network gets the intrinsics as a channel gate (as in
    BEVDepth, Li et al., 2022) and, per cell, its ray in ego and the depth at which that ray meets the ground z = 0.
    """

    def __init__(
        self, config: CameraConfig, num_bins: int, extra: int = 0, blocks: int = 1, norm: Norm = "batch"
    ) -> None:
        """``extra`` channels beside those of the image, ``blocks`` convolutions before the last one."""
        super().__init__()
        width = config.fpn_channels
        self.stride = config.stride
        self.max_depth = config.depth[1]
        self.num_bins = num_bins
        self.lens = _perceptron(_NUM_LENS, width)
        inputs = [width + extra + _NUM_RAY, *[width] * (blocks - 1)]
        self.mix = nn.Sequential(*(conv_block(count, width, norm=norm) for count in inputs))
        self.out = nn.Conv2d(width, num_bins + config.channels, 1)

    def forward(
        self, x_MCHW: Tensor, cameras: Cameras, lidar: PointCloud | None = None, extra_MCHW: Tensor | None = None
    ) -> CameraFeatures:
        """Features of every image; ``lidar`` is not looked at."""
        x_MCHW = x_MCHW * (2 * torch.sigmoid(self.lens(lens_of(cameras))))[..., None, None]
        rays_MCHW = rays_of(cameras, x_MCHW.shape[-2:], self.stride, self.max_depth).to(x_MCHW.dtype)
        parts = [x_MCHW, rays_MCHW] if extra_MCHW is None else [x_MCHW, extra_MCHW.to(x_MCHW.dtype), rays_MCHW]
        y_MCHW = self.out(self.mix(torch.cat(parts, dim=1)))
        if not self.num_bins:
            return CameraFeatures(y_MCHW, None)
        return CameraFeatures(y_MCHW[:, self.num_bins :], y_MCHW[:, : self.num_bins])


class AwareDepthNet(nn.Module):
    """The camera-aware depth network of BEVDepth (Li et al., 2022), to be trained with the depth loss.

    Intrinsics and extrinsics, augmentation included, make one channel gate for the context and another one for the
    depth, which then has a tower of its own: residual blocks and pyramid pooling (ASPP, Chen et al., 2017). Unlike the
    paper's, the tower ends without a deformable convolution, cells know their rays, the gates' inputs are not
    normalised over the batch, whose images may be few, and the lifted depth is not refined any more.
    """

    def __init__(self, config: CameraConfig, num_bins: int) -> None:
        super().__init__()
        width = config.fpn_channels
        self.stride = config.stride
        self.max_depth = config.depth[1]
        self.reduce = conv_block(width + _NUM_RAY, width)
        self.context_gate = _perceptron(_NUM_LENS + _NUM_MOUNT, width)
        self.depth_gate = _perceptron(_NUM_LENS + _NUM_MOUNT, width)
        self.context = nn.Conv2d(width, config.channels, 1)
        self.depth = nn.Sequential(
            *(ResidualBlock(width, width) for _ in range(3)), PyramidPooling(width), nn.Conv2d(width, num_bins, 1)
        )

    def forward(self, x_MCHW: Tensor, cameras: Cameras, lidar: PointCloud | None = None) -> CameraFeatures:
        """Features of every image; ``lidar`` is not looked at."""
        rays_MCHW = rays_of(cameras, x_MCHW.shape[-2:], self.stride, self.max_depth).to(x_MCHW.dtype)
        x_MCHW = self.reduce(torch.cat([x_MCHW, rays_MCHW], dim=1))
        camera_MN = torch.cat([lens_of(cameras), mount_of(cameras)], dim=1)
        context_MCHW, depth_MCHW = (
            x_MCHW * torch.sigmoid(gate(camera_MN))[..., None, None] for gate in (self.context_gate, self.depth_gate)
        )
        return CameraFeatures(self.context(context_MCHW), self.depth(depth_MCHW))


class PyramidPooling(nn.Module):
    """Dilated convolutions side by side, with the mean over the image (ASPP, Chen et al., 2017)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 1 if step == 1 else 3, padding=0 if step == 1 else step,
                          dilation=step, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for step in (1, 6, 12, 18)
        )  # fmt: skip
        self.whole = nn.Linear(channels, channels)  # not normalised: there may be one image only
        self.join = conv_block(5 * channels, channels, kernel=1)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """[M, C, H, W] to the same shape."""
        whole_MCHW = F.relu(self.whole(x_MCHW.mean((2, 3))))[..., None, None].expand_as(x_MCHW)
        return self.join(torch.cat([*(branch(x_MCHW) for branch in self.branches), whole_MCHW], dim=1))


class LidarDepthNet(nn.Module):
    """A depth network that is shown the sparse depth of LiDAR (DepthLSS in BEVFusion, Liu et al., 2023).

    LiDAR says nothing beside the image features for images whose sample has none, and a channel tells so; trained with
    sensors dropped, the network learns to do without. Cells of a quarter of a feature cell hold the nearest depth of
    the key sweep and that of the older ones, which on moving objects is somewhere else, in channels of their own;
    BEVFusion has single pixels and mixes all sweeps. Normalised per image, since two sensors meet here.
    """

    def __init__(self, config: CameraConfig, num_bins: int) -> None:
        super().__init__()
        self.stride = config.stride
        self.max_depth = config.depth[1]
        self.sparse = nn.Sequential(
            conv_block(_NUM_SPARSE, 16, norm="group"),
            conv_block(16, 32, stride=2, norm="group"),
            conv_block(32, 64, stride=2, norm="group"),
        )
        self.net = DepthNet(config, num_bins, extra=64, blocks=2, norm="group")

    def forward(self, x_MCHW: Tensor, cameras: Cameras, lidar: PointCloud | None = None) -> CameraFeatures:
        """Features of every image, whose sample may have LiDAR or not."""
        shape = (4 * x_MCHW.shape[2], 4 * x_MCHW.shape[3])
        sparse_MCHW = sparse_depth(cameras, lidar, shape, self.stride // 4, self.max_depth)
        return self.net(x_MCHW, cameras, extra_MCHW=self.sparse(sparse_MCHW))


def sparse_depth(
    cameras: Cameras, lidar: PointCloud | None, shape: tuple[int, int], cell: int, max_depth: float
) -> Tensor:
    """[M, 5, H, W] float32: what LiDAR shows of an image.

    Depth as a fraction of ``max_depth`` and whether there is one, of the key sweep and then of the older sweeps; and
    whether the image's sample has no LiDAR at all. Points farther than that are not shown.

    Args:
        cameras: M images.
        lidar: points of the same batch, or None.
        shape: rows and columns of cells.
        cell: side of a cell [px].
        max_depth: [m].
    """
    sparse_M5HW = cameras.images.new_zeros(len(cameras.images), _NUM_SPARSE, *shape, dtype=torch.float32)
    if lidar is None:
        sparse_M5HW[:, 4] = 1
        return sparse_M5HW
    older_P = (lidar.points[:, LIDAR_FIELDS.index("time")].abs() >= KEY_SWEEP).long()
    depth_M2HW = nearest_depth(cameras, lidar, older_P, 2, shape, cell)
    seen_M2HW = depth_M2HW <= max_depth
    sparse_M5HW[:, 0:4:2] = torch.where(seen_M2HW, depth_M2HW / max_depth, 0)
    sparse_M5HW[:, 1:4:2] = seen_M2HW.float()
    sparse_M5HW[:, 4] = (~lidar.present[cameras.batch_index]).float()[:, None, None]
    return sparse_M5HW


def lens_of(cameras: Cameras) -> Tensor:
    """[M, 6] intrinsics as fractions of the image size, so that they are of order one."""
    rows, cols = cameras.images.shape[-2:]
    matrix = cameras.image_from_cam[:, :2, :3]
    return (matrix / matrix.new_tensor([[cols], [rows]])).flatten(1)


def mount_of(cameras: Cameras) -> Tensor:
    """[M, 12] where a camera sits in ego and how it is turned, with the augmentation of the world."""
    return cameras.ego_from_cam[:, :3].flatten(1)


def rays_of(cameras: Cameras, shape: torch.Size, stride: int, max_depth: float) -> Tensor:
    """[M, 4, H, W] ray direction in ego and the depth of the ground as a fraction of the farthest bin."""
    origin_M3, ray_MHW3 = pixel_rays(cameras.image_from_cam, cameras.ego_from_cam, (shape[0], shape[1]), stride)
    down_MHW = (-ray_MHW3[..., 2]).clamp(min=1e-6)
    ground_MHW = (origin_M3[:, None, None, 2] / down_MHW / max_depth).clamp(0, 1)
    return torch.cat([ray_MHW3, ground_MHW[..., None]], dim=-1).permute(0, 3, 1, 2)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
