"""Configuration: frozen dataclasses are the schema, the documentation and the defaults; YAML holds only differences.

``load_config(path, overrides)`` reads a file strictly (an unknown key is an error that names the nearest known one) and
applies ``--a.b value`` overrides; ``differences`` prints what is not default. Ranges stand in the types of the fields.
"""

from fusion3d.config.data import AugmentConfig, DataConfig
from fusion3d.config.load import check, differences, from_dict, load_config, override, to_dict
from fusion3d.config.model import (
    CameraConfig,
    DetectionConfig,
    FusionConfig,
    LidarConfig,
    MapConfig,
    PlanningConfig,
    QueryConfig,
    RadarConfig,
    ResNetConfig,
    TemporalConfig,
    TrunkConfig,
)
from fusion3d.config.schema import Config
from fusion3d.config.train import TrainConfig

__all__ = [
    "AugmentConfig",
    "CameraConfig",
    "Config",
    "DataConfig",
    "DetectionConfig",
    "FusionConfig",
    "LidarConfig",
    "MapConfig",
    "PlanningConfig",
    "QueryConfig",
    "RadarConfig",
    "ResNetConfig",
    "TemporalConfig",
    "TrainConfig",
    "TrunkConfig",
    "check",
    "differences",
    "from_dict",
    "load_config",
    "override",
    "to_dict",
]
