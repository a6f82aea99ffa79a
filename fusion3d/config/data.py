"""What is read, and how it is changed while training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fusion3d.config.ranges import Amount, Changes, Count, Fraction, Scales, Whole
from fusion3d.types import CAMERAS, RADARS


@dataclass(frozen=True)
class DataConfig:
    """Where the data are and how a sample is read."""

    root: str = "data/nuscenes"
    """Folder that holds ``samples/``, ``sweeps/``, ``maps/`` and the table folder named by ``version``."""
    version: str = "v1.0-trainval"
    """Table folder: v1.0-mini, v1.0-trainval, v1.0-test or one of your own."""
    train_split: str = "train"
    """Split for training: an official name, or a key of the version's ``splits.json``."""
    split: str = "val"
    """Split for evaluation and prediction."""
    sensors: tuple[str, ...] = ("camera", "lidar", "radar")
    """Which kinds of sensor are read at all."""
    cameras: tuple[str, ...] = CAMERAS
    """Camera channels to read."""
    radars: tuple[str, ...] = RADARS
    """Radar channels to read."""
    image_size: tuple[int, int] = (256, 704)
    """Height and width of the network's images [px]."""
    lidar_sweeps: Count = 10
    """LiDAR clouds per sample, the keyframe's included."""
    radar_sweeps: Count = 6
    """Clouds per radar, the keyframe's included."""
    radar_filter: Literal["none", "valid", "devkit"] = "none"
    """none: every return; valid: invalid_state 0 and its documented usable codes; devkit: the devkit's defaults."""
    lidar_min_distance: Amount = 1.0
    """Points closer than this in x and y of their own sensor [m] are the vehicle itself and are dropped."""
    min_points: Whole = 1
    """Boxes with fewer LiDAR + radar points are no training targets (evaluation uses the devkit's own rule)."""
    command: Literal["route", "gt_endpoint", "none"] = "gt_endpoint"
    """What tells a planner where to go. route: the way that navigation had laid down before the drive, of the CAN bus
    expansion (unknown where a scene has none, or a wrong one); gt_endpoint: the side on which the driven path ends, as
    published planners have it, which tells some of what they are to find out; none: always unknown."""
    status: Literal["poses", "can_bus"] = "poses"
    """Where the vehicle's own velocity, acceleration and yaw rate come from. poses: differences of its last keyframes;
    can_bus: its last measurement before the sample (unknown where a scene has none)."""
    skip_broken: bool = False
    """True: a sample with a damaged sensor file loads without that sensor and warns; False: it is an error."""
    corruptions: tuple[str, ...] = ()
    """What is wrong with the sensors, as SENSOR.KIND:AMOUNT, such as lidar.fog:2 or CAM_FRONT.missing:3
    (fusion3d/data/corruptions/kinds.py has them all)."""
    workers: Whole = 2
    """Loader processes; 0 loads in the main process."""


@dataclass(frozen=True)
class PasteCounts:
    """Up to how many objects of a class a sample is filled; those of CenterPoint's nuScenes recipe."""

    car: Whole = 2
    truck: Whole = 3
    bus: Whole = 4
    trailer: Whole = 6
    construction_vehicle: Whole = 7
    pedestrian: Whole = 2
    motorcycle: Whole = 6
    bicycle: Whole = 6
    traffic_cone: Whole = 2
    barrier: Whole = 2


@dataclass(frozen=True)
class PastePoints:
    """LiDAR points that an object of a class needs."""

    car: Whole = 5
    truck: Whole = 5
    bus: Whole = 5
    trailer: Whole = 5
    construction_vehicle: Whole = 5
    pedestrian: Whole = 5
    motorcycle: Whole = 5
    bicycle: Whole = 5
    traffic_cone: Whole = 5
    barrier: Whole = 5


@dataclass(frozen=True)
class PasteConfig:
    """Objects of other samples pasted into a sample: points, radar returns and image patches."""

    database: str = "data/objects"
    """Folder made by ``make_objects`` from the training split."""
    counts: PasteCounts = field(default_factory=PasteCounts)
    """For each class, up to how many objects a sample is filled."""
    min_points: PastePoints = field(default_factory=PastePoints)
    """For each class, the fewest LiDAR points of an object that is pasted."""
    min_visibility: Literal[0, 1, 2, 3, 4] = 3
    """nuScenes visibility level that an object needs where images are read; 0: any, and unknown too."""
    max_occlusion: Fraction = 0.3
    """Largest part of an object's window in an image that a nearer one may cover, where one of the two is pasted."""
    blend: Fraction = 1.0
    """Share of the patch in the pasted pixels; the rest is the image that was there (mixup)."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes while training; ``augment: null`` switches them off."""

    image_scale: Changes = (-0.06, 0.11)
    """Uniform change of the resize factor around the fitting one."""
    image_rotation: Amount = 5.4
    """Largest image rotation [degrees]."""
    image_flip: bool = True
    """Mirror each image with probability 1/2 (the projection follows; no label changes)."""
    bev_rotation: Amount = 22.5
    """Largest rotation about z [degrees]."""
    bev_scale: Scales = (0.95, 1.05)
    """Uniform scale of the world."""
    bev_flip: bool = True
    """Mirror along x and along y, each with probability 1/2."""
    bev_shift: Amount = 0.0
    """Standard deviation of a shift of the world along x, y and z [m]; 0.5 in published recipes."""
    corrupt: Fraction = 0.0
    """Probability that one of ``corruptions``, of a random amount, befalls a sample and the keyframes before it."""
    corruptions: tuple[str, ...] = ()
    """As SENSOR.KIND for any amount, or SENSOR.KIND:AMOUNT; none: all kinds that have severities."""
    paste: PasteConfig | None = None
    """Pasted objects; null: none."""
    fade: tuple[Literal["paste", "bev", "image"], ...] = ("paste",)
    """What the last ``fade_epochs`` do without: pasted objects, the changes of the world, those of the images."""
    fade_epochs: Whole = 0
    """So many epochs at the end show the data without what ``fade`` names; all of them where there are fewer."""
