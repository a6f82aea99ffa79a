"""Camera branch up to the image plane: what each feature cell shows, and how far away it is.

Letters: M images (packed), C channels, H W feature rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.config import CameraConfig
from fusion3d.encoders.backbones import Backbone, make_backbone
from fusion3d.encoders.blocks import TopDown, conv_block
from fusion3d.encoders.depth import AwareDepthNet, CameraFeatures, DepthNet, LidarDepthNet
from fusion3d.encoders.resnet import ResNet
from fusion3d.errors import ConfigError
from fusion3d.types import Cameras, PointCloud

__all__ = ["CameraEncoder", "CameraFeatures", "StackedTopDown", "make_camera_encoder"]


class CameraEncoder(nn.Module):
    """Images to context features and, where there are bins, a depth distribution per feature cell."""

    def __init__(self, backbone: Backbone, neck: nn.Module, depth_net: nn.Module, finest: int) -> None:
        """The neck gets the backbone's maps from number ``finest`` on."""
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        # Kept with the weights of others' networks: where these are evaluated, what they learned with may not be found.
        kept = not isinstance(backbone, ResNet)
        for name, colour in zip(("mean", "std"), backbone.colours, strict=True):
            self.register_buffer(name, torch.tensor(colour)[:, None, None], persistent=kept)
        self.backbone = backbone
        self.neck = neck
        self.depth_net = depth_net
        self.finest = finest

    @property
    def helped(self) -> bool:
        """Does what is made of images depend on LiDAR?"""
        return isinstance(self.depth_net, LidarDepthNet)

    def forward(self, cameras: Cameras, lidar: PointCloud | None = None) -> CameraFeatures:
        """Features of every image; rows as in ``cameras``. ``lidar`` is for depth that it helps, and may be absent."""
        images_M3HW = (cameras.images - self.mean) / self.std
        images_M3HW = images_M3HW.contiguous(memory_format=torch.channels_last)
        x_MCHW = self.neck(self.backbone(images_M3HW)[self.finest :])
        return self.depth_net(x_MCHW, cameras, lidar)


class StackedTopDown(nn.Module):
    """The neck of lift-splat networks: the deeper map is stacked onto the shallower one and convolved.

    LSS-FPN of BEVDet (Huang et al., 2021) and BEVFusion (Liu et al., 2023), of any number of maps, of which only the
    finest is made, by a 1x1 convolution at every join and one of 3x3 at the end (BEVFusion has one at every join). The
    deeper map is brought to the other's size by repetition instead of interpolation, whose gradient on CUDA is not the
    same in every run.
    """

    def __init__(self, inputs: Sequence[int], channels: int) -> None:
        super().__init__()
        self.joins = nn.ModuleList()  # from coarse to fine
        below = inputs[-1]
        for count in reversed(inputs[:-1]):
            self.joins.append(conv_block(count + below, channels, kernel=1))
            below = channels
        self.out = conv_block(below, channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps from fine to coarse to one [M, channels, H, W] of the finest one's size."""
        x_MCHW = maps[-1]
        for join, finer in zip(self.joins, reversed(maps[:-1]), strict=True):
            x_MCHW = F.interpolate(x_MCHW, size=finer.shape[-2:], mode="nearest")
            x_MCHW = join(torch.cat([finer, x_MCHW], dim=1))
        return self.out(x_MCHW)


def make_camera_encoder(config: CameraConfig, num_bins: int, pretrained: bool = True) -> CameraEncoder:
    """The encoder that the configuration names, for ``num_bins`` depth bins or none.

    Raises:
        ConfigError: a backbone without a map of the stride that is asked for; as in ``make_backbone``.
        CheckpointError: as in ``make_backbone``.
    """
    backbone = make_backbone(config.backbone, config.stride, pretrained)
    if config.stride not in backbone.strides:
        raise ConfigError(
            f"camera.stride: found {config.stride}, and camera.backbone.name {config.backbone.name} has maps of stride "
            f"{', '.join(map(str, backbone.strides))}; expected one of these"
        )
    finest = backbone.strides.index(config.stride)
    neck = {"fpn": TopDown, "lss_fpn": StackedTopDown}[config.neck](backbone.channels[finest:], config.fpn_channels)
    nets = {"aware_lift": AwareDepthNet, "radar_lift": AwareDepthNet, "lidar_lift": LidarDepthNet}
    return CameraEncoder(backbone, neck, nets.get(config.view, DepthNet)(config, num_bins), finest)
