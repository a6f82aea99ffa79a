"""One run, whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusion3d.config.data import AugmentConfig, DataConfig
from fusion3d.config.model import (
    CameraConfig,
    DetectionConfig,
    FusionConfig,
    LidarConfig,
    MapConfig,
    MotionConfig,
    RadarConfig,
    TemporalConfig,
    TrunkConfig,
)
from fusion3d.config.planning import OccupancyConfig, PlanningConfig
from fusion3d.config.ranges import Whole
from fusion3d.config.train import EvaluationConfig, TrainConfig
from fusion3d.types import OCCUPANCY_TIMES, SENSORS, TIME_STEP, BEVGrid


@dataclass(frozen=True)
class Config:
    """One run, whole."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    grid: BEVGrid = field(default_factory=BEVGrid)
    camera: CameraConfig | None = field(default_factory=CameraConfig)
    lidar: LidarConfig | None = field(default_factory=LidarConfig)
    radar: RadarConfig | None = field(default_factory=RadarConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    temporal: TemporalConfig | None = None
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    detection: DetectionConfig | None = field(default_factory=DetectionConfig)
    motion: MotionConfig | None = None
    planning: PlanningConfig | None = field(default_factory=PlanningConfig)
    map: MapConfig | None = None
    occupancy: OccupancyConfig | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    seed: Whole = 0
    """Everything random starts from it."""
    deterministic: bool = True
    """Bit-identical results on the same machine, at some cost on GPU."""

    @property
    def branches(self) -> tuple[str, ...]:
        """The kinds of sensor that the model has a branch for, in the order of ``SENSORS``."""
        return tuple(sensor for sensor in SENSORS if getattr(self, sensor) is not None)

    @property
    def map_grid(self) -> BEVGrid:
        """The grid that maps are cut in: the map head's, where it has its own."""
        return self.grid if self.map is None or self.map.grid is None else self.map.grid

    @property
    def steps(self) -> int:
        """Steps ahead that a sample must be known for: as far as any head looks, and 6 where none does."""
        known = [head.steps for head in (self.planning, self.motion) if head is not None]
        known += [round(OCCUPANCY_TIMES[-1] / TIME_STEP)] if self.occupancy is not None else []
        return max(known, default=6)
