"""Configuration: frozen dataclasses are the schema, the documentation and the defaults; YAML holds only differences.

``load_config(path, overrides)`` reads a file strictly (an unknown key is an error that names the nearest known one) and
applies ``--a.b value`` overrides; ``differences`` prints what is not default. Ranges stand in the types of the fields.
"""

from fusion3d.config.data import AugmentConfig, DataConfig, PasteConfig, PasteCounts, PastePoints
from fusion3d.config.load import check, differences, from_dict, load_config, override, to_dict
from fusion3d.config.model import (
    BackboneConfig,
    CameraConfig,
    DenseConfig,
    DetectionConfig,
    DualConfig,
    FusionConfig,
    LidarConfig,
    MapConfig,
    MotionConfig,
    QueryConfig,
    RadarConfig,
    TemporalConfig,
    TrunkConfig,
    VoxelConfig,
    WindowConfig,
)
from fusion3d.config.planning import AnchorConfig, OccupancyConfig, PlanningConfig
from fusion3d.config.schema import Config
from fusion3d.config.train import EvaluationConfig, TrackerConfig, TrainConfig

__all__ = [
    "AnchorConfig",
    "AugmentConfig",
    "BackboneConfig",
    "CameraConfig",
    "Config",
    "DataConfig",
    "DenseConfig",
    "DetectionConfig",
    "DualConfig",
    "EvaluationConfig",
    "FusionConfig",
    "LidarConfig",
    "MapConfig",
    "MotionConfig",
    "OccupancyConfig",
    "PasteConfig",
    "PasteCounts",
    "PastePoints",
    "PlanningConfig",
    "QueryConfig",
    "RadarConfig",
    "TemporalConfig",
    "TrackerConfig",
    "TrainConfig",
    "TrunkConfig",
    "VoxelConfig",
    "WindowConfig",
    "check",
    "differences",
    "from_dict",
    "load_config",
    "override",
    "to_dict",
]
