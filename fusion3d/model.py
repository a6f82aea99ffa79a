"""Fusion3D: the page to read first.

    sensor -> features in its own geometry -> the shared bird's-eye grid -> one map -> heads

Any subset of sensors goes in: a branch whose sensor no sample has does not run, and the fusion knows sample by sample
what is absent. What the branches ``sense`` serves every subset; what to ``conclude`` from it is asked for each.
Letters: B samples, C channels, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.bev.align import DeformableAlign
from fusion3d.bev.auxiliary import auxiliary_losses
from fusion3d.bev.early import EarlyFusion
from fusion3d.bev.lift import DepthBins, DepthOutput, depth_loss
from fusion3d.bev.radar_lift import RadarLift
from fusion3d.bev.represent import Coordinated, CoordinatedOutput, Factorised, FactorisedOutput
from fusion3d.bev.temporal import Memory, Temporal
from fusion3d.bev.trunk import Trunk
from fusion3d.bev.views import View
from fusion3d.counts import named
from fusion3d.encoders.camera import CameraEncoder, CameraFeatures
from fusion3d.encoders.clouds import CloudEncoder
from fusion3d.heads.center import CenterHead
from fusion3d.heads.image import ImageClasses
from fusion3d.heads.map import MapHead
from fusion3d.heads.motion import MotionHead
from fusion3d.heads.occupancy import OccupancyHead
from fusion3d.heads.planning import Planner
from fusion3d.heads.query import QueryHead
from fusion3d.heads.sensors import SensorHeatmaps
from fusion3d.heads.targets import DetectionTargets
from fusion3d.types import Batch, Boxes, Forecast, Predictions


class CameraBranch(nn.Module):
    """Images to a bird's-eye map, and what can be asked of the images themselves."""

    def __init__(
        self,
        encoder: CameraEncoder,
        view: View | None,
        bins: DepthBins | None,
        stride: int,
        depth_weight: float,
        classes: ImageClasses | None = None,
    ) -> None:
        """``view`` is None where no map is made, ``bins`` where no depth is; ``stride`` [px] of a feature cell."""
        super().__init__()
        self.encoder = encoder
        self.view = view
        self.bins = bins
        self.stride = stride
        self.depth_weight = depth_weight
        self.classes = classes

    @property
    def helped(self) -> bool:
        """Does what is made of images depend on another sensor?"""
        return self.encoder.helped or isinstance(self.view, RadarLift)

    def look(self, batch: Batch) -> tuple[CameraFeatures | None, dict[str, Any]]:
        """What images show, and what there is of "depth" (DepthOutput) and "image" (ImageOutput; in training, and where
        points are painted instead of a map made).

        Nothing without images; but in training, where processes may have to go through the layers together, cameras
        without an image do so. LiDAR is looked at where depth is helped by it.
        """
        cameras = batch.cameras
        if cameras is None or not (len(cameras.images) or self.training):
            return None, {}
        features = self.encoder(cameras, batch.lidar)
        outputs: dict[str, Any] = {}
        if features.depth is not None:
            outputs["depth"] = DepthOutput(features.depth, cameras)
        if self.classes is not None and (self.training or self.view is None):
            outputs["image"] = self.classes(features.context, cameras)
        return features, outputs

    def forward(self, batch: Batch) -> tuple[Tensor | None, dict[str, Any]]:
        """[B, C, Y, X], None without images, and what ``look`` says. Radar is looked at where it helps the view."""
        assert self.view is not None, "this branch makes no map"
        features, outputs = self.look(batch)
        if features is None or batch.cameras is None:
            return None, outputs
        return self.view(features, batch.cameras, len(batch), batch.radar), outputs

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of the outputs that are there."""
        terms: dict[str, Tensor] = {}
        if "depth" in outputs and self.bins is not None:
            depth = depth_loss(outputs["depth"], batch.lidar, self.bins, self.stride)
            terms["depth"] = self.depth_weight * depth
        if self.classes is not None and "image" in outputs:
            terms |= self.classes.losses(outputs["image"], batch)
        return terms


Maps = Mapping[str, Tensor | None]  # [B, C, Y, X] by sensor, None where no sample has it


@dataclass(frozen=True)
class Sensed:
    """What the encoders make of a batch."""

    maps: Maps
    said: dict[str, Any]  # on the way: outputs that no other sensor has a part in
    past: tuple[Sensed, ...] = ()  # of the batch's history, oldest first


class Fusion3D(nn.Module):
    """Cameras, LiDAR and radar, whichever are there, to objects and a plan.

    A branch or an embedding that a batch does not need gets no gradient: wrap the model in
    ``DistributedDataParallel`` with ``find_unused_parameters=True``. Losses keep every output in the graph.
    """

    def __init__(
        self,
        camera: CameraBranch | None,
        lidar: CloudEncoder | None,
        radar: CloudEncoder | None,
        fuse: nn.Module,
        trunk: Trunk,
        detection: CenterHead | QueryHead | None,
        planning: Planner | None,
        sensors: SensorHeatmaps | None = None,
        align: DeformableAlign | None = None,
        represent: Coordinated | Factorised | None = None,
        temporal: Temporal | None = None,
        map: MapHead | None = None,
        motion: MotionHead | None = None,
        occupancy: OccupancyHead | None = None,
    ) -> None:
        """``motion`` needs ``detection``, whose boxes it forecasts."""
        super().__init__()
        self.camera = camera
        self.lidar = lidar
        self.radar = radar
        self.align = align
        self.represent = represent
        self.fuse = fuse
        self.trunk = trunk
        self.detection = detection
        self.planning = planning
        self.sensors = sensors
        self.temporal = temporal
        self.map = map
        self.motion = motion
        self.occupancy = occupancy

    def forward(self, batch: Batch, memory: Memory | None = None) -> dict[str, Any]:
        """Raw outputs, those there are.

        Args:
            batch: any sensors.
            memory: "memory" of the outputs for the batch before, where frames come one after another; then the batch
                needs no ``history``, and has each scene once at most.

        Returns:
            "detection" (DetectionMaps or QueryBoxes), "planning" (PlannedPath or ScoredPaths), "map" ([B, N, Y, X]
            logits), "motion" (MotionPaths), "occupancy" (Occupancy, logits), "depth" (DepthOutput), "image"
            (ImageOutput), "memory" (Memory); "sensors" and "representation" in training.
        """
        sensed = self.sense(batch)
        return sensed.said | self.conclude(sensed, batch, memory)

    def sense(self, batch: Batch) -> Sensed:
        """What the encoders make of a batch, and of its history, whose sensors get no gradient."""
        maps, said = self.encode(batch)
        if self.training and self.sensors is not None:
            said["sensors"] = self.sensors(maps, batch.present)
        history = () if self.temporal is None else batch.history
        with torch.no_grad():
            past = [Sensed(*self.encode(past.batch)) for past in reversed(history)]
        return Sensed(maps, said, tuple(past))

    def encode(self, batch: Batch) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        """Each sensor's map [B, C, Y, X] of a keyframe, and what is said on the way to it."""
        if isinstance(self.fuse, EarlyFusion):  # of sensors that meet as points, and have one map of them all
            features, said = (None, {}) if self.camera is None else self.camera.look(batch)
            return {"points": self.fuse(features, said, batch)}, said
        maps: dict[str, Tensor | None] = {}
        said: dict[str, Any] = {}
        if self.camera is not None:
            maps["camera"], said = self.camera(batch)
        if self.lidar is not None:
            maps["lidar"] = None if batch.lidar is None else self.lidar(batch.lidar)
        if self.radar is not None:
            maps["radar"] = None if batch.radar is None else self.radar(batch.radar)
        return maps, said

    @property
    def separable(self) -> bool:
        """Does each encoder look at its own sensor alone, so that its map is right whatever others are there?"""
        return not isinstance(self.fuse, EarlyFusion) and (self.camera is None or not self.camera.helped)

    def conclude(self, sensed: Sensed, batch: Batch, memory: Memory | None = None) -> dict[str, Any]:
        """The outputs that all sensors have a part in, from what the encoders made.

        Args:
            sensed: of this batch or, if the model is ``separable``, of the same with more sensors.
            batch: which sensors are there, in every sample and its past, and all that is no sensor.
            memory: as of ``forward``.
        """
        maps, related = self.relate(sensed.maps, batch)
        outputs: dict[str, Any] = {} if related is None else {"representation": related}
        fused_BCYX = self.join(maps, batch)
        if self.temporal is not None:
            fused_BCYX, outputs["memory"] = self.remember(fused_BCYX, sensed.past, batch, memory)
        bev_BCYX = self.trunk(fused_BCYX)

        if self.detection is not None:
            outputs["detection"] = self.detection(bev_BCYX, batch)
        if self.occupancy is not None:
            outputs["occupancy"] = self.occupancy(bev_BCYX)
        if self.planning is not None:
            outputs["planning"] = self.planning(bev_BCYX, batch, outputs.get("occupancy"))
        if self.map is not None:
            outputs["map"] = self.map(bev_BCYX)
        if self.motion is not None and self.detection is not None:
            found = self.detection.decode(outputs["detection"])
            outputs["motion"] = self.motion(bev_BCYX, found, batch, outputs.get("map"))
        return outputs

    def relate(self, maps: Maps, batch: Batch) -> tuple[Maps, CoordinatedOutput | FactorisedOutput | None]:
        """The maps of the sensors that are there as they are fused, and what is said of them in training."""
        related = None
        if not isinstance(self.fuse, EarlyFusion):
            maps = {name: None if batch.sensor(name) is None else maps[name] for name in maps}
        if self.align is not None:
            maps = self.align(maps, batch.present)
        if self.represent is not None:
            maps, related = self.represent(maps, batch.present)
        return maps, related if self.training else None

    def join(self, maps: Maps, batch: Batch) -> Tensor:
        """The fused map [B, C, Y, X]."""
        if isinstance(self.fuse, EarlyFusion):
            (fused_BCYX,) = maps.values()
            assert fused_BCYX is not None
            return fused_BCYX
        return self.fuse(list(maps.values()), [batch.present[name] for name in maps])

    def remember(
        self, fused_BCYX: Tensor, before: Sequence[Sensed], batch: Batch, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """The fused map with its past, from memory or from what the encoders made of the batch's history."""
        assert self.temporal is not None
        streams: Sequence[Hashable] = batch.scenes
        if memory is None:
            streams = range(len(batch))  # two samples of a training batch may be of one scene
            for sensed, past in zip(before, reversed(batch.history), strict=True):
                with torch.no_grad():
                    before_BCYX = self.join(self.relate(sensed.maps, past.batch)[0], past.batch)
                if past.row:  # of no sample, where another process has some: it was only to go through the layers
                    _, memory = self.temporal(before_BCYX, past.batch, memory, past.row)
        fused_BCYX, kept = self.temporal(fused_BCYX, batch, memory, streams)
        return fused_BCYX, dataclasses.replace(kept, streams=batch.scenes)

    def under(self, batch: Batch, subsets: Sequence[Batch]) -> dict[str, Any]:
        """Outputs for ``losses`` of the same samples under several subsets of their sensors, encoded once if possible.

        Args:
            batch: any sensors.
            subsets: the batch with fewer kinds of sensors, each in its own way.

        Returns:
            "subsets": outputs under each; what one loss is enough for, of all the sensors, stands beside.
        """
        if not self.separable:
            return {"subsets": [self(seen) for seen in subsets]}
        sensed = self.sense(batch)
        several = [self.conclude(sensed, seen) | {"representation": None} for seen in subsets]
        related = None if self.represent is None else self.relate(sensed.maps, batch)[1]
        return sensed.said | {"representation": related, "subsets": several}

    def losses(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar loss terms; the loss is their sum.

        Args:
            outputs: of ``forward``, which may have seen fewer sensors than there are, or of ``under``: then the terms
                are means over the subsets.
            batch: with every sensor: LiDAR that the model did not see still supervises the images' depth.
        """
        targets = None if self.detection is None else self.detection.targets(batch)
        terms: dict[str, Tensor] = {}
        several = outputs.get("subsets", ())
        for number, of_subset in enumerate(several):
            with named(f"subset{number}"):
                for name, value in self.terms(of_subset, batch, targets).items():
                    terms[name] = terms.get(name, torch.zeros_like(value)) + value / len(several)
        return terms | self.terms(outputs, batch, targets)

    def terms(self, outputs: dict[str, Any], batch: Batch, targets: DetectionTargets | None) -> dict[str, Tensor]:
        """The loss terms of the outputs that are there."""
        terms: dict[str, Tensor] = {}
        if self.detection is not None and "detection" in outputs:
            terms |= self.detection.losses(outputs["detection"], batch, targets)
        for name in ("planning", "map", "motion", "occupancy"):
            head = getattr(self, name)
            if head is not None and name in outputs:
                terms |= head.losses(outputs[name], batch)
        if self.sensors is not None and "sensors" in outputs:
            terms |= self.sensors.losses(outputs["sensors"], batch, targets)
        if self.camera is not None:
            terms |= self.camera.losses(outputs, batch)
        return terms | auxiliary_losses(self, outputs, batch)

    def decode(self, outputs: dict[str, Any], batch: Batch) -> Predictions:
        """Boxes, their motion, plan and maps in the frame of the batch (ego, where the batch is not augmented)."""
        plan = modes = None
        boxes, motion = self.agents(outputs)
        if self.planning is not None:
            plan, modes = self.planning.decode(outputs["planning"], batch, boxes, motion)
        return Predictions(
            tokens=batch.tokens,
            boxes=boxes,
            plan=plan,
            map=None if self.map is None else self.map.decode(outputs["map"]),
            motion=motion,
            modes=modes,
            occupancy=None if self.occupancy is None else self.occupancy.decode(outputs["occupancy"]),
        )

    def agents(self, outputs: Mapping[str, Any]) -> tuple[tuple[Boxes, ...] | None, tuple[Forecast, ...] | None]:
        """The boxes of ``decode`` and how they go on, which a planner can look at; None what no head says."""
        if self.motion is not None:
            return outputs["motion"].found, self.motion.decode(outputs["motion"])
        return None if self.detection is None else self.detection.decode(outputs["detection"]), None
