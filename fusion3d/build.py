"""A configuration to a model: the parts that it names, put together."""

from __future__ import annotations

import dataclasses

from fusion3d.bev.align import make_align
from fusion3d.bev.early import make_early
from fusion3d.bev.fusion import make_fusion
from fusion3d.bev.lift import DepthBins
from fusion3d.bev.represent import make_representation
from fusion3d.bev.temporal import make_temporal
from fusion3d.bev.trunk import Trunk
from fusion3d.bev.views import make_view
from fusion3d.config import AnchorConfig, Config
from fusion3d.encoders.camera import make_camera_encoder
from fusion3d.encoders.lidar import make_lidar
from fusion3d.encoders.radar import make_radar
from fusion3d.errors import ConfigError
from fusion3d.heads.center import CenterHead
from fusion3d.heads.image import ImageClasses
from fusion3d.heads.map import MapHead
from fusion3d.heads.motion import MotionHead
from fusion3d.heads.occupancy import OccupancyHead
from fusion3d.heads.planning import AnchorPlanner, Planner, QueryPlanner
from fusion3d.heads.query import QueryHead
from fusion3d.heads.sensors import SensorHeatmaps
from fusion3d.late import JOINT, LateFusion, Model
from fusion3d.model import CameraBranch, Fusion3D


def build_model(config: Config, pretrained: bool = True) -> Model:
    """The model that ``config`` describes, on the CPU, with random weights.

    Args:
        config: every part of it.
        pretrained: read the backbone's weights that ``camera.backbone.weights`` names, if any. Not needed where a
            checkpoint fills the model.

    Raises:
        ConfigError: parts that do not fit each other, or none at all.
        CheckpointError: a backbone weight file that cannot be used.
    """
    stage, sensors = config.fusion.stage, config.branches
    if not sensors:
        raise ConfigError("camera, lidar and radar are all null; expected at least one sensor's branch")
    if all(head is None for head in (config.detection, config.planning, config.map, config.occupancy)):
        raise ConfigError("detection, planning, map and occupancy are all null; expected at least one head")
    if config.motion is not None and config.detection is None:
        raise ConfigError(
            "motion is set and detection is null; forecasts are of detected boxes: set motion to null too, or detection"
        )
    _check_planning(config)
    _check_odometry(config)
    if stage in ("early", "late"):
        _check_no_maps_meet(config)
    if stage not in ("late", "hybrid"):
        return _build_one(config, pretrained)
    if len(sensors) < 2:
        raise ConfigError(
            f"fusion.stage {stage!r} merges what several sensors say; only {'+'.join(sensors)} is not null"
        )
    if config.camera is not None and config.camera.view in ("lidar_lift", "radar_lift"):
        raise ConfigError(
            f"camera.view: found {config.camera.view!r}; with fusion.stage {stage!r} cameras have a model of their "
            "own, which sees no other sensor: expected a view that needs none"
        )
    models = {name: _build_one(_alone(config, name), pretrained) for name in sensors}
    if stage == "hybrid":
        models[JOINT] = _build_one(config, pretrained)
    return LateFusion(models, config.fusion.merge)


def _check_planning(config: Config) -> None:
    """ConfigError where the planner is to use what there is not, or settings are of one that it is not."""
    planning = config.planning
    if planning is None:
        return
    if planning.head != "anchors":
        if planning.anchors != AnchorConfig():
            raise ConfigError(f"planning.anchors is set, and planning.head is {planning.head!r}: set it to 'anchors'")
        return
    if planning.anchors.reject and config.detection is None:
        raise ConfigError("planning.anchors.reject is true, and detection is null: there are no boxes to look at")
    asked = [name for name in ("occupied", "undrivable") if planning.anchors.prices.get(name)]
    if asked and config.occupancy is None:
        raise ConfigError(f"planning.anchors.prices has {asked[0]!r}, and occupancy is null: nothing says it")


def _check_odometry(config: Config) -> None:
    """ConfigError where the radars' map cannot say when the vehicle would be where."""
    if config.radar is None or not config.radar.odometry:
        return
    if config.fusion.stage == "early":
        raise ConfigError("radar.odometry is true, and with fusion.stage 'early' the radars have no map of their own")
    if config.augment is not None and config.augment.bev_shift:
        raise ConfigError(
            "radar.odometry is true, and augment.bev_shift moves the vehicle away from where it counts from"
        )


def _check_no_maps_meet(config: Config) -> None:
    """ConfigError where sensors' maps are to be joined or related, and the stage makes none that meet."""
    for key, usual in (("operator", "concat"), ("representation", "joint"), ("align", "none")):
        found = getattr(config.fusion, key)
        if found != usual:
            raise ConfigError(
                f"fusion.{key}: found {found!r}; with fusion.stage {config.fusion.stage!r} no maps of sensors meet: "
                f"set {usual!r}"
            )


def _alone(config: Config, sensor: str) -> Config:
    """The configuration of a model of one sensor; its head is loss enough for its branch."""
    others = {name: None for name in config.branches if name != sensor}
    detection = config.detection and dataclasses.replace(config.detection, sensor_weight=0.0)
    fusion = dataclasses.replace(config.fusion, stage="middle", operator="concat", representation="joint", align="none")
    return dataclasses.replace(config, detection=detection, fusion=fusion, **others)  # type: ignore[arg-type]


def _make_camera(config: Config, pretrained: bool) -> CameraBranch:
    camera = config.camera
    assert camera is not None
    if min(config.data.image_size) < 64:
        raise ConfigError(f"data.image_size: expected at least 64 x 64 px, found {config.data.image_size}")
    view = None if config.fusion.stage == "early" else make_view(config)
    bins = DepthBins(*camera.depth) if view is None else view.bins
    encoder = make_camera_encoder(camera, 0 if bins is None else len(bins), pretrained)
    classes = None
    if camera.image_loss > 0:
        classes = ImageClasses(camera.channels, camera.stride, camera.image_loss)
    return CameraBranch(encoder, view, bins, camera.stride, camera.depth_loss, classes)


def _make_planner(config: Config) -> Planner | None:
    planning, inputs, grid = config.planning, config.trunk.out_channels, config.grid
    if planning is None:
        return None
    if planning.head == "query":
        return QueryPlanner(planning, inputs, grid)
    return AnchorPlanner(planning, inputs, grid, config.map_grid, config.occupancy is not None)


def _build_one(config: Config, pretrained: bool) -> Fusion3D:
    """The model whose sensors meet in one map, or before, as points."""
    grid, camera, lidar, radar = config.grid, None, None, None
    early = config.fusion.stage == "early"
    if config.camera is not None:
        camera = _make_camera(config, pretrained)
    if config.lidar is not None and not early:
        lidar = make_lidar(config.lidar, grid)
    if config.radar is not None and not early:
        radar = make_radar(config.radar, grid)
    channels = {name: getattr(config, name).channels for name in config.branches}
    inputs = config.trunk.out_channels
    detection = sensors = None
    if config.detection is not None:
        head = {"center": CenterHead, "query": QueryHead}[config.detection.head]
        detection = head(config.detection, inputs, grid)
        if config.detection.sensor_weight > 0 and not early:
            sensors = SensorHeatmaps(channels, config.detection.loss_weight * config.detection.sensor_weight)
    planning = _make_planner(config)
    motion = None
    if config.motion is not None:
        motion = MotionHead(config.motion, inputs, grid, None if config.map is None else config.map_grid)
    align, represent = make_align(config.fusion, channels, grid), make_representation(config.fusion, channels, grid)
    fused = channels if represent is None else represent.channels
    return Fusion3D(
        camera,
        lidar,
        radar,
        make_early(config) if early else make_fusion(config.fusion, list(fused.values()), grid),
        Trunk(config.trunk, config.fusion.channels),
        detection,
        planning,
        sensors,
        align,
        represent,
        config.temporal and make_temporal(config.temporal, config.fusion.channels, grid),
        config.map and MapHead(config.map, inputs, grid),
        motion,
        config.occupancy and OccupancyHead(config.occupancy, inputs, grid, config.map_grid),
    )
