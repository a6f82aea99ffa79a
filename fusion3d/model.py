"""Fusion3D: the page to read first.

    sensor -> features in its own geometry -> the shared bird's-eye grid -> one map -> heads

Any subset of sensors goes in: a branch whose sensor no sample has does not run, and the fusion knows sample by sample
what is absent. Letters: B samples, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.bev.fuse import ConcatFusion, WeightedFusion, make_fusion
from fusion3d.bev.lift import DepthBins, DepthOutput, LiftSplat, depth_loss
from fusion3d.bev.temporal import Memory, Temporal, make_temporal
from fusion3d.bev.trunk import Trunk
from fusion3d.config import Config
from fusion3d.encoders.camera import CameraEncoder
from fusion3d.encoders.lidar import LidarEncoder
from fusion3d.encoders.radar import RadarEncoder
from fusion3d.encoders.resnet import load_weights
from fusion3d.errors import ConfigError
from fusion3d.heads.detection import DetectionHead
from fusion3d.heads.image import ImageClasses
from fusion3d.heads.planning import PlanningHead
from fusion3d.heads.sensors import SensorHeatmaps
from fusion3d.types import Batch, Predictions


class CameraBranch(nn.Module):
    """Images to a bird's-eye map, and what can be asked of the images themselves."""

    def __init__(
        self, encoder: CameraEncoder, lift: LiftSplat, depth_weight: float, classes: ImageClasses | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.lift = lift
        self.channels = lift.channels
        self.depth_weight = depth_weight
        self.classes = classes

    def forward(self, batch: Batch) -> tuple[Tensor | None, dict[str, Any]]:
        """[B, C, Y, X], and "depth" (DepthOutput) and, in training, "image" (ImageOutput); nothing without cameras.

        Cameras without an image go through the layers in training, where processes may have to do so together.
        """
        cameras = batch.cameras
        if cameras is None or not (len(cameras.images) or self.training):
            return None, {}
        features = self.encoder(cameras)
        outputs: dict[str, Any] = {"depth": DepthOutput(features.depth, cameras)}
        if self.training and self.classes is not None:
            outputs["image"] = self.classes(features.context, cameras)
        return self.lift(features, cameras, len(batch)), outputs

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the outputs that are there."""
        terms: dict[str, Tensor] = {}
        if "depth" in outputs:
            depth = depth_loss(outputs["depth"], batch.lidar, self.lift.bins, self.lift.stride)
            terms["depth"] = self.depth_weight * depth
        if self.classes is not None and "image" in outputs:
            terms |= self.classes.losses(outputs["image"], batch)
        return terms


class Fusion3D(nn.Module):
    """Cameras, LiDAR and radar, whichever are there, to objects and a plan.

    A branch or an embedding that a batch does not need gets no gradient: wrap the model in
    ``DistributedDataParallel`` with ``find_unused_parameters=True``. Losses keep every output in the graph.
    """

    def __init__(
        self,
        camera: CameraBranch | None,
        lidar: LidarEncoder | None,
        radar: RadarEncoder | None,
        fuse: ConcatFusion | WeightedFusion,
        trunk: Trunk,
        detection: DetectionHead | None,
        planning: PlanningHead | None,
        sensors: SensorHeatmaps | None = None,
        temporal: Temporal | None = None,
    ) -> None:
        super().__init__()
        self.camera = camera
        self.lidar = lidar
        self.radar = radar
        self.fuse = fuse
        self.trunk = trunk
        self.detection = detection
        self.planning = planning
        self.sensors = sensors
        self.temporal = temporal

    def forward(self, batch: Batch, memory: Memory | None = None) -> dict[str, Any]:
        """Raw outputs, those there are.

        Args:
            batch: any sensors.
            memory: "memory" of the outputs for the batch before, where frames come one after another; then the batch
                needs no ``history``, and has each scene once at most.

        Returns:
            "detection" (DetectionMaps), "planning" ([B, T, 2]), "depth" (DepthOutput), "memory" (Memory); "sensors" and
            "image" in training.
        """
        maps, outputs = self.see(batch)
        if self.training and self.sensors is not None:
            outputs["sensors"] = self.sensors(maps, batch.present)
        fused_BCYX = self.fuse(list(maps.values()), [batch.present[name] for name in maps])
        if self.temporal is not None:
            fused_BCYX, outputs["memory"] = self.remember(fused_BCYX, batch, memory)
        bev_BCYX = self.trunk(fused_BCYX)

        if self.detection is not None:
            outputs["detection"] = self.detection(bev_BCYX, batch)
        if self.planning is not None:
            outputs["planning"] = self.planning(bev_BCYX, batch)
        return outputs

    def see(self, batch: Batch) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        """Each branch's map [B, C, Y, X], None where no sample has the sensor; and what images say besides."""
        outputs: dict[str, Any] = {}
        maps: dict[str, Tensor | None] = {}
        if self.camera is not None:
            maps["camera"], outputs = self.camera(batch)
        if self.lidar is not None:
            maps["lidar"] = None if batch.lidar is None else self.lidar(batch.lidar)
        if self.radar is not None:
            maps["radar"] = None if batch.radar is None else self.radar(batch.radar)
        return maps, outputs

    def remember(self, fused_BCYX: Tensor, batch: Batch, memory: Memory | None) -> tuple[Tensor, Memory]:
        """The fused map with its past, from memory or the batch's history, whose sensors get no gradient."""
        assert self.temporal is not None
        streams: Sequence[Hashable] = batch.scenes
        if memory is None:
            streams = range(len(batch))  # two samples of a training batch may be of one scene
            for past in reversed(batch.history):
                with torch.no_grad():
                    maps, _ = self.see(past.batch)
                    map_BCYX = self.fuse(list(maps.values()), [past.batch.present[name] for name in maps])
                if past.row:  # of no sample, where another process has some: it was only to go through the layers
                    _, memory = self.temporal(map_BCYX, past.batch, memory, past.row)
        fused_BCYX, kept = self.temporal(fused_BCYX, batch, memory, streams)
        return fused_BCYX, dataclasses.replace(kept, streams=batch.scenes)

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar loss terms; the loss is their sum.

        Args:
            outputs: of ``forward``, which may have seen fewer sensors than there are.
            batch: with every sensor: LiDAR that the model did not see still supervises the images' depth.
        """
        terms: dict[str, Tensor] = {}
        if self.detection is not None:
            terms |= self.detection.losses(outputs["detection"], batch)
        if self.planning is not None:
            terms |= self.planning.losses(outputs["planning"], batch)
        if self.sensors is not None and "sensors" in outputs:
            terms |= self.sensors.losses(outputs["sensors"], batch)
        if self.camera is not None:
            terms |= self.camera.losses(outputs, batch)
        return terms

    def decode(self, outputs: dict[str, Any], batch: Batch) -> Predictions:
        """Boxes and plan in the frame of the batch (ego, where the batch is not augmented)."""
        return Predictions(
            tokens=batch.tokens,
            boxes=None if self.detection is None else self.detection.decode(outputs["detection"]),
            plan=None if self.planning is None else self.planning.decode(outputs["planning"], batch),
        )


def build_model(config: Config, pretrained: bool = True) -> Fusion3D:
    """The model that ``config`` describes, on the CPU, with random weights.

    Args:
        config: every part of it.
        pretrained: read the backbone's weights from ``camera.backbone.weights``, where that names a file. Not needed
            where a checkpoint fills the model.

    Raises:
        ConfigError: parts that do not fit each other, or none at all.
        CheckpointError: a backbone weight file that cannot be used.
    """
    grid, camera, lidar, radar = config.grid, None, None, None
    if config.camera is not None:
        if min(config.data.image_size) < 64:
            raise ConfigError(f"data.image_size: expected at least 64 x 64 px, found {config.data.image_size}")
        bins = DepthBins(*config.camera.depth)
        classes = None
        if config.camera.image_loss > 0:
            classes = ImageClasses(config.camera.channels, config.camera.stride, config.camera.image_loss)
        camera = CameraBranch(
            CameraEncoder(config.camera, len(bins)),
            LiftSplat(bins, grid, config.camera.stride, config.camera.channels),
            config.camera.depth_loss,
            classes,
        )
        if pretrained and config.camera.backbone.weights:
            load_weights(camera.encoder.backbone, config.camera.backbone.weights)
    if config.lidar is not None:
        lidar = LidarEncoder(config.lidar, grid)
    if config.radar is not None:
        radar = RadarEncoder(config.radar, grid)
    branches = {"camera": camera, "lidar": lidar, "radar": radar}
    channels = {name: branch.channels for name, branch in branches.items() if branch is not None}
    if not channels:
        raise ConfigError("camera, lidar and radar are all null; expected at least one sensor's branch")
    if config.detection is None and config.planning is None:
        raise ConfigError("detection and planning are both null; expected at least one head")
    inputs = config.trunk.out_channels
    detection = planning = sensors = None
    if config.detection is not None:
        detection = DetectionHead(config.detection, inputs, grid)
        if config.detection.sensor_weight > 0:
            sensors = SensorHeatmaps(channels, grid, config.detection.loss_weight * config.detection.sensor_weight)
    if config.planning is not None:
        planning = PlanningHead(config.planning, inputs, grid)
    model = Fusion3D(
        camera,
        lidar,
        radar,
        make_fusion(config.fusion, list(channels.values()), grid),
        Trunk(config.trunk, config.fusion.channels),
        detection,
        planning,
        sensors,
        config.temporal and make_temporal(config.temporal, config.fusion.channels, grid),
    )
    return model
