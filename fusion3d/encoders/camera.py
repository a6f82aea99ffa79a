"""Camera branch up to the image plane: what each feature cell shows, and how far away it is.

Letters: M images (packed), C channels, D depth bins, H W feature rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d.config import CameraConfig
from fusion3d.encoders.blocks import TopDown, conv_block
from fusion3d.encoders.resnet import ResNet
from fusion3d.geometry.rays import pixel_rays
from fusion3d.types import Cameras

_NUM_RAY = 4  # channels that tell the network where each cell looks
_NUM_LENS = 6  # numbers that describe a camera


@dataclass(frozen=True)
class CameraFeatures:
    """What the camera encoder knows of M images."""

    context: Tensor  # [M, C, H, W] what is there
    depth: Tensor  # [M, D, H, W] logits over the depth bins


class CameraEncoder(nn.Module):
    """Images to context features and a depth distribution per feature cell.

    Depth from one image needs the lens and the mounting: the network gets the intrinsics as a channel gate (as in
    BEVDepth, Li et al., 2022) and, per cell, its ray in ego and the depth at which that ray meets the ground z = 0.
    """

    def __init__(self, config: CameraConfig, num_bins: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.stride = config.stride
        self.channels = config.channels
        self.max_depth = config.depth[1]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)
        self.backbone = ResNet(config.backbone.depth, config.backbone.width)
        self.first = {8: 1, 16: 2}[config.stride]
        self.neck = TopDown(self.backbone.channels[self.first :], config.fpn_channels)
        self.lens = nn.Sequential(
            nn.Linear(_NUM_LENS, config.fpn_channels),
            nn.ReLU(),
            nn.Linear(config.fpn_channels, config.fpn_channels),
        )
        self.mix = conv_block(config.fpn_channels + _NUM_RAY, config.fpn_channels)
        self.out = nn.Conv2d(config.fpn_channels, num_bins + config.channels, 1)

    def forward(self, cameras: Cameras) -> CameraFeatures:
        """Features of every image; rows as in ``cameras``."""
        images_M3HW = (cameras.images - self.mean) / self.std
        images_M3HW = images_M3HW.contiguous(memory_format=torch.channels_last)
        x_MCHW = self.neck(self.backbone(images_M3HW)[self.first :])
        x_MCHW = x_MCHW * (2 * torch.sigmoid(self.lens(self._lens_of(cameras))))[..., None, None]
        x_MCHW = self.mix(torch.cat([x_MCHW, self._rays_of(cameras, x_MCHW.shape[-2:]).to(x_MCHW.dtype)], dim=1))
        depth_MDHW, context_MCHW = self.out(x_MCHW).tensor_split([self.out.out_channels - self.channels], dim=1)
        return CameraFeatures(context_MCHW, depth_MDHW)

    def _lens_of(self, cameras: Cameras) -> Tensor:
        """[M, 6] intrinsics as fractions of the image size, so that they are of order one."""
        rows, cols = cameras.images.shape[-2:]
        matrix = cameras.image_from_cam[:, :2, :3]
        return (matrix / matrix.new_tensor([[cols], [rows]])).flatten(1)

    def _rays_of(self, cameras: Cameras, shape: torch.Size) -> Tensor:
        """[M, 4, H, W] ray direction in ego and the depth of the ground as a fraction of the farthest bin."""
        origin_M3, ray_MHW3 = pixel_rays(
            cameras.image_from_cam, cameras.ego_from_cam, (shape[0], shape[1]), self.stride
        )
        down_MHW = (-ray_MHW3[..., 2]).clamp(min=1e-6)
        ground_MHW = (origin_M3[:, None, None, 2] / down_MHW / self.max_depth).clamp(0, 1)
        return torch.cat([ray_MHW3, ground_MHW[..., None]], dim=-1).permute(0, 3, 1, 2)
