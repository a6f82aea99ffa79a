"""Early fusion: the sensors meet as points, before there is any map.

Letters: B samples, P points of all sensors, F numbers of a point, S sensors of the model, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.lift import DepthBins
from fusion3d.bev.painting import Painting, VirtualCloud, VirtualPoints
from fusion3d.bev.views import check_helper
from fusion3d.config import CameraConfig, Config, FusionConfig, LidarConfig
from fusion3d.encoders.blocks import conv_block
from fusion3d.encoders.clouds import CloudEncoder
from fusion3d.encoders.depth import CameraFeatures
from fusion3d.encoders.footprint import advance
from fusion3d.encoders.lidar import make_lidar
from fusion3d.encoders.radar import NUM_FEATURES, describe
from fusion3d.errors import ConfigError
from fusion3d.types import DETECTION_CLASSES, LIDAR_FIELDS, Batch, BEVGrid, PointCloud

_MEASURED = {"camera": 0, "lidar": len(LIDAR_FIELDS) - 3, "radar": NUM_FEATURES}  # numbers of a point after x, y, z
_VIEWS = ("lift", "aware_lift", "lidar_lift")  # whose depth networks serve here


class EarlyFusion(nn.Module):
    """One cloud of the points of all sensors, painted by the images, and one encoder that makes a map of it.

    LiDAR points and radar returns are painted with image features or class scores (PointPainting, Vora et al., 2020;
    PointAugmenting, Wang et al., 2021). The cameras have points too, at the depths that their images suggest
    (``VirtualPoints``): what no other sensor measured is there as well, and cameras alone see.

    The numbers of a point: x, y, z; for each sensor a bit that says whether the point is its own, and what that sensor
    measured, zeros where it is another's (in a linear layer, as the encoders' first is, zeros beside that bit are as
    good as learned values); how surely what the images show is at the point: 1 where it was measured and is seen, its
    depth's probability for a virtual point, 0 where no camera looks; and, times that, what they show.

    A sensor without points may have seen nothing, or be absent: then a learned vector of its own is added everywhere.
    """

    def __init__(
        self,
        sensors: tuple[str, ...],
        cloud: CloudEncoder,
        cameras: tuple[VirtualPoints, Painting] | None,
        config: FusionConfig,
        grid: BEVGrid,
        moving: bool = True,
    ) -> None:
        """Put together the parts.

        Args:
            sensors: S that the model has, of SENSORS.
            cloud: encoder of clouds with ``num_fields`` of the sensors after x, y, z, and what is painted.
            cameras: what they add to the cloud and to its points; None without them.
            config: ``paint`` and ``channels`` are read.
            grid: the shared one.
            moving: move radar returns to where they should be now.
        """
        super().__init__()
        self.sensors = sensors
        self.virtual, self.painting = cameras or (None, None)
        self.cloud = cloud
        self.paint = config.paint
        self.moving = moving
        self.shape = grid.shape
        self.absent = nn.Parameter(0.02 * torch.randn(len(sensors), cloud.channels))
        self.mix = conv_block(cloud.channels, config.channels, kernel=1, norm="group")

    def forward(self, features: CameraFeatures | None, said: Mapping[str, Any], batch: Batch) -> Tensor:
        """What all sensors see, as one map [B, C, Y, X].

        Args:
            features: of the batch's images; None where there are none.
            said: what was said on the way: "image" (ImageOutput) where points are painted with scores.
            batch: any sensors.
        """
        virtual = None
        if self.virtual is not None and features is not None:
            assert features.depth is not None and batch.cameras is not None
            virtual = self.virtual(features.depth, batch.cameras)
        cloud, sure_P = self.merge(batch, virtual)
        if self.painting is not None:
            shown_PF = torch.zeros(len(sure_P), 1 + self.painting.channels, device=sure_P.device)
            if features is not None and batch.cameras is not None:
                paint_MCHW = features.context
                if self.paint == "scores":  # which learn from their own loss alone, to stay what they are called
                    paint_MCHW = said["image"].logits.detach().float().sigmoid()
                shown_PC, seen_P = self.painting(paint_MCHW, batch.cameras, cloud)
                shown_PF = torch.cat([seen_P[:, None], shown_PC], dim=1) * sure_P[:, None]
            cloud = PointCloud(torch.cat([cloud.points, shown_PF], dim=1), cloud.batch_index, cloud.present)
        map_BCYX = self.cloud(cloud)
        if map_BCYX is None:
            map_BCYX = self.absent.new_zeros(len(batch), self.cloud.channels, *self.shape)
        absent_BS = torch.stack([~batch.present[name] for name in self.sensors], dim=1)
        told_BC = (absent_BS[..., None] * self.absent).sum(1)
        return self.mix(map_BCYX + told_BC[..., None, None])

    def merge(self, batch: Batch, virtual: VirtualCloud | None) -> tuple[PointCloud, Tensor]:
        """The points of all sensors, sample by sample, and [P] how sure it is that each is where it is.

        A sample is present in the cloud where it has any of the sensors.
        """
        lidar = batch.lidar if "lidar" in self.sensors else None
        radar = batch.radar if "radar" in self.sensors else None
        nothing = torch.zeros(0, 3 + num_fields(self.sensors), device=batch.command.device)
        parts = [(nothing, batch.command[:0], nothing[:, 0])]
        if virtual is not None:
            parts.append((self.rows("camera", virtual.xyz), virtual.batch_index, virtual.chance))
        if lidar is not None:
            parts.append((self.rows("lidar", lidar.points), lidar.batch_index, torch.ones_like(lidar.points[:, 0])))
        if radar is not None:
            returns = advance(radar.points) if self.moving else radar.points
            rows_PF = self.rows("radar", torch.cat([returns[:, :3], describe(returns)], dim=1))
            parts.append((rows_PF, radar.batch_index, torch.ones_like(returns[:, 0])))
        points_PF, sample_P, sure_P = (torch.cat(column) for column in zip(*parts, strict=True))
        order_P = sample_P.argsort(stable=True)
        present_B = torch.stack([batch.present[name] for name in self.sensors]).any(0)
        return PointCloud(points_PF[order_P], sample_P[order_P], present_B), sure_P[order_P]

    def rows(self, sensor: str, points_PF: Tensor) -> Tensor:
        """Points of one sensor, x, y, z and what it measured, in the columns of all sensors."""
        before = num_fields(self.sensors[: self.sensors.index(sensor)])
        after = num_fields(self.sensors) - before - 1 - _MEASURED[sensor]
        own_PF = torch.cat([torch.ones_like(points_PF[:, :1]), points_PF[:, 3:]], dim=1)
        return torch.cat([points_PF[:, :3], F.pad(own_PF, (before, after))], dim=1)


def num_fields(sensors: tuple[str, ...]) -> int:
    """Numbers of a point after x, y, z, before it is painted: for each sensor a bit and what it measured."""
    return sum(1 + _MEASURED[sensor] for sensor in sensors)


def make_early(config: Config) -> EarlyFusion:
    """Early fusion of the sensors that have a branch.

    Raises:
        ConfigError: settings that do not go together.
    """
    fusion, sensors = config.fusion, config.branches
    num_features, cameras = num_fields(sensors), None
    if config.camera is not None:
        cameras = _make_cameras(config, config.camera)
        num_features += 1 + cameras[1].channels
    lidar = config.lidar or LidarConfig(pillar=config.grid.resolution)
    cloud = make_lidar(lidar, config.grid, num_features, norm="group")
    moving = config.radar is not None and config.radar.advance
    return EarlyFusion(sensors, cloud, cameras, fusion, config.grid, moving)


def _make_cameras(config: Config, camera: CameraConfig) -> tuple[VirtualPoints, Painting]:
    check_helper(config)
    if camera.view not in _VIEWS:
        raise ConfigError(
            f"camera.view: found {camera.view!r}; fusion.stage 'early' reads its depth alone: expected one of "
            f"{', '.join(_VIEWS)}"
        )
    bins, count = DepthBins(*camera.depth), config.fusion.virtual_points
    if count > len(bins):
        raise ConfigError(
            f"fusion.virtual_points: found {count}; camera.depth has {len(bins)} bins: expected no more than these"
        )
    scores = config.fusion.paint == "scores"
    if scores and camera.image_loss == 0:
        raise ConfigError(
            "fusion.paint: found 'scores' with camera.image_loss 0, so no class is learned; expected more than 0"
        )
    channels = len(DETECTION_CLASSES) if scores else camera.channels
    return VirtualPoints(bins, camera.stride, count), Painting(camera.stride, channels)
