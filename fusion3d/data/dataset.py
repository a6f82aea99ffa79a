"""nuScenes as samples: one keyframe in, everything about it in one frame out."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.utils.data import Dataset

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.annotations import load_boxes, load_ego
from fusion3d.data.augment import draw_bev_augmentation, transform_sample
from fusion3d.data.guard import Lenient, strict
from fusion3d.data.images import ImageAugmentation, draw_image_augmentation, load_cameras
from fusion3d.data.lidar import load_lidar
from fusion3d.data.maps import crop_map
from fusion3d.data.nuscenes import Tables
from fusion3d.data.radar import load_radars
from fusion3d.data.splits import samples_of
from fusion3d.errors import ConfigError
from fusion3d.types import CAMERAS, RADARS, SENSORS, BEVGrid, Sample


class NuScenesDataset(Dataset[Sample]):
    """The keyframes of a split.

    ``dataset[i]`` depends on the data set, the configuration and (seed, epoch, i) alone: not on what was
    read before, nor on the process that reads it. ``dataset[epoch, i]`` names the epoch itself, which is how
    a loader with living worker processes asks.

    Sensor files that the tables do not list, kinds and channels that the configuration does not ask for, are
    absent. The ground truth and the ego's path are always read (where the data set has them).

    Args:
        config: where the data are and how they are read.
        split: an official split or one of the data set's ``splits.json``.
        grid: of the map mask.
        augment: random changes; None for none.
        seed: of the random changes.
        training: leave out boxes with fewer than ``config.min_points`` points; by default where there is
            augmentation. Evaluation wants them all, because the official rule has its own filter.
        steps: number of future and past ego positions.
        with_map: cut the map mask, which the map head learns from and pictures show.
        keyframes: of each sample, with the present one: those before are its ``history``, as far as the scene has them.

    Raises:
        ConfigError: an unknown sensor or channel, or fewer than one sweep.
        DataError: the tables or the split cannot be read; on access, a sample whose files are broken.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        grid: BEVGrid,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        *,
        training: bool | None = None,
        steps: int = 6,
        with_map: bool = True,
        keyframes: int = 1,
    ) -> None:
        _check_config(config)
        self.config, self.split, self.grid, self.augment = config, split, grid, augment
        self.seed, self.steps, self.with_map, self.keyframes = seed, steps, with_map, keyframes
        self.training = augment is not None if training is None else training
        self.tables = Tables.open(config.root, config.version)
        self.rows = np.array(samples_of(self.tables, split), dtype=np.int64)
        self.epoch = 0
        self._guard = Lenient() if config.skip_broken else strict

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> list[str]:
        """Sample tokens, in the order of the indices."""
        return [self.tables.token(int(row)) for row in self.rows]

    def index_of(self, token: str) -> int:
        """The index of a sample token. DataError where the data set lacks it, KeyError outside of the split."""
        found = np.flatnonzero(self.rows == self.tables.row_of(token))
        if len(found) == 0:
            raise KeyError(f"sample {token!r} is not in split {self.split!r}")
        return int(found[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes of another pass."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        index %= len(self)
        row = int(self.rows[index])
        if self.augment is None:
            return self._read(row, None)
        return self._read(row, np.random.default_rng([self.seed, epoch, index]))

    def _read(self, row: int, rng: np.random.Generator | None) -> Sample:
        config, tables, augment = self.config, self.tables, self.augment
        aug_from_ego, changes = None, None
        if rng is not None and augment is not None:
            aug_from_ego = draw_bev_augmentation(augment, rng)
            # Drawn for all channels in a fixed order, so that a missing camera does not change the others.
            changes = {channel: draw_image_augmentation(augment, rng) for channel in CAMERAS}
        future, past, status, command = load_ego(tables, row, self.steps)
        sample = dataclasses.replace(
            self._sense(row, changes),
            future=future,
            past=past,
            status=status,
            command=command,
            boxes=load_boxes(tables, row, config.min_points if self.training else 0) if tables.annotated else None,
            history=tuple(self._sense(before, changes) for before in self._rows_before(row)),
        )
        if aug_from_ego is not None:
            sample = transform_sample(sample, aug_from_ego)
        if self.with_map:
            found = self._guard(lambda: crop_map(tables, row, self.grid, aug_from_ego))
            if found is not None:
                sample = dataclasses.replace(sample, map_mask=found[0], map_known=found[1])
        return sample

    def _rows_before(self, row: int) -> list[int]:
        """Keyframes of the same scene before a sample, newest first."""
        rows: list[int] = []
        while len(rows) < self.keyframes - 1 and (row := int(self.tables.sample_prev[row])) >= 0:
            rows.append(row)
        return rows

    def _sense(self, row: int, changes: dict[str, ImageAugmentation] | None) -> Sample:
        """A keyframe's sensors in its own ego, without targets."""
        config, tables = self.config, self.tables
        cameras = lidar = radar = None
        if "camera" in config.sensors:
            cameras = load_cameras(tables, row, config.cameras, config.image_size, changes, self._guard)
        if "lidar" in config.sensors:
            lidar = load_lidar(tables, row, config.lidar_sweeps, config.lidar_min_distance, self._guard)
        if "radar" in config.sensors:
            radar = load_radars(tables, row, config.radars, config.radar_sweeps, config.radar_filter, guard=self._guard)
        return Sample(
            token=tables.token(row),
            scene=tables.scene(row),
            timestamp=int(tables.reference_time[row]),
            global_from_ego=torch.from_numpy(tables.global_from_ego(row)),
            aug_from_ego=torch.eye(4),
            cameras=cameras,
            lidar=lidar,
            radar=radar,
        )


def _check_config(config: DataConfig) -> None:
    for name, known in (("sensors", SENSORS), ("cameras", CAMERAS), ("radars", RADARS)):
        unknown = [item for item in getattr(config, name) if item not in known]
        if unknown:
            raise ConfigError(f"data.{name}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    for name in ("lidar_sweeps", "radar_sweeps"):
        if getattr(config, name) < 1:
            raise ConfigError(f"data.{name} is {getattr(config, name)}: expected at least 1, the keyframe's own cloud")
    if min(config.image_size) < 1:
        raise ConfigError(f"data.image_size is {config.image_size}: expected height and width of at least 1 px")
