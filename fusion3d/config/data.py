"""What is read, and how it is changed while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fusion3d.config.ranges import Amount, Changes, Count, Scales, Whole
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
    skip_broken: bool = False
    """True: a sample with a damaged sensor file loads without that sensor and warns; False: it is an error."""
    workers: Whole = 2
    """Loader processes; 0 loads in the main process."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes while training; ``augment: null`` switches them off."""

    image_scale: Changes = (-0.06, 0.11)
    """Uniform change of the resize factor around the fitting one."""
    image_rotation: float = 5.4
    """Largest image rotation [degrees]."""
    image_flip: bool = True
    """Mirror each image with probability 1/2 (the projection follows; no label changes)."""
    bev_rotation: float = 22.5
    """Largest rotation about z [degrees]."""
    bev_scale: Scales = (0.95, 1.05)
    """Uniform scale of the world."""
    bev_flip: bool = True
    """Mirror along x and along y, each with probability 1/2."""
