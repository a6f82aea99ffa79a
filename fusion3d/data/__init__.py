"""Data: nuScenes tables and sensor files to ``Sample`` and ``Batch``."""

from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.loader import BatchOrder, make_loader
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import official_scenes, own_splits, samples_of
from fusion3d.data.subset import draw_subsets, drop_sensors, select_sensors

__all__ = [
    "BatchOrder",
    "NuScenesDataset",
    "Tables",
    "collate",
    "draw_subsets",
    "drop_sensors",
    "make_loader",
    "official_scenes",
    "own_splits",
    "samples_of",
    "select_sensors",
]
