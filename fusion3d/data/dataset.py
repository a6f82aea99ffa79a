"""nuScenes as samples: one keyframe in, everything about it in one frame out."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch.utils.data import Dataset

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.annotations import load_boxes, load_ego, load_motion
from fusion3d.data.augment import draw_bev_augmentation, transform_sample
from fusion3d.data.can_bus import has_can_bus
from fusion3d.data.corruptions import Corruptor, draw_one, parse
from fusion3d.data.corruptions.kinds import choices
from fusion3d.data.guard import Lenient, strict
from fusion3d.data.images import ImageAugmentation, draw_image_augmentation, load_cameras
from fusion3d.data.lidar import load_lidar
from fusion3d.data.maps import crop_map
from fusion3d.data.nuscenes import Tables
from fusion3d.data.paste.place import Paster
from fusion3d.data.radar import load_radars
from fusion3d.data.splits import samples_of
from fusion3d.errors import ConfigError
from fusion3d.types import CAMERAS, DETECTION_CLASSES, RADARS, SENSORS, BEVGrid, Sample


class NuScenesDataset(Dataset[Sample]):
    """The keyframes of a split.

    ``dataset[i]`` depends on the data set, the configuration and (seed, epoch, i) alone: not on what was
    read before, nor on the process that reads it. ``dataset[epoch, i]`` names the epoch itself, which is how
    a loader with living worker processes asks; ``dataset[epoch, i, n]`` gives a sample that comes for the n-th time in
    one epoch its own random changes (n from 0).

    Sensor files that the tables do not list, kinds and channels that the configuration does not ask for, are
    absent. The ground truth and the ego's path are always read (where the data set has them).

    Args:
        config: where the data are and how they are read.
        split: an official split or one of the data set's ``splits.json``.
        grid: of the map mask.
        augment: random changes and pasted objects; None for none.
        seed: of the random changes.
        training: leave out boxes with fewer than ``config.min_points`` points; by default where there is
            augmentation. Evaluation wants them all, because the official rule has its own filter.
        steps: number of future and past ego positions.
        with_map: cut the map mask, which the map head learns from and pictures show.
        with_motion: follow what is around over the same steps, which motion and planning heads learn from.
        keyframes: of each sample, with the present one: those before are its ``history``, as far as the scene has them.
        epochs: how many there will be, from which the fade at the end is counted; None: there is no end.
        stride: every how many-th keyframe of a scene is a sample.

    Raises:
        ConfigError: an unknown sensor, channel or corruption, fewer than one sweep, or objects to paste that do not
            fit.
        DataError: the tables, the objects to paste or the split cannot be read; on access, a sample whose files
            are broken.
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
        with_motion: bool = False,
        keyframes: int = 1,
        epochs: int | None = None,
        stride: int = 1,
    ) -> None:
        _check_config(config)
        if keyframes > 1 and augment is not None and augment.paste is not None:
            raise ConfigError(
                "augment.paste puts objects into the present keyframe alone; with temporal, set it to null"
            )
        self.config, self.split, self.grid, self.augment = config, split, grid, augment
        self.seed, self.steps, self.keyframes, self.epochs = seed, steps, keyframes, epochs
        self.with_map, self.with_motion = with_map, with_motion
        self.training = augment is not None if training is None else training
        self.tables = Tables.open(config.root, config.version)
        _check_can_bus(config, self.tables)
        scenes = (list(rows) for _, rows in groupby(samples_of(self.tables, split), self.tables.scene))
        rows = [row for scene in scenes for row in scene[min(stride // 2, len(scene) - 1) :: stride]]
        self.rows = np.array(rows, dtype=np.int64)  # with a stride not the first of a scene, which have no past
        self.epoch = 0
        self.paster = None if augment is None or augment.paste is None else Paster.open(augment.paste, config, grid)
        self._guard = Lenient() if config.skip_broken else strict
        self._corruptions = [parse(text) for text in config.corruptions]
        self._candidates = (
            choices(augment.corruptions, config.sensors, "augment.corruptions") if augment and augment.corrupt else []
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> list[str]:
        """Sample tokens, in the order of the indices."""
        return [self.tables.token(int(row)) for row in self.rows]

    @property
    def scenes(self) -> list[str]:
        """The scene of each sample, in the order of the indices: scene after scene, each in order of time."""
        return [self.tables.scene(int(row)) for row in self.rows]

    def index_of(self, token: str) -> int:
        """The index of a sample token. DataError where the data set lacks it, KeyError outside of the split."""
        found = np.flatnonzero(self.rows == self.tables.row_of(token))
        if len(found) == 0:
            raise KeyError(f"sample {token!r} is not in split {self.split!r}")
        return int(found[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes of another pass."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, ...]) -> Sample:
        epoch, index, *time = key if isinstance(key, tuple) else (self.epoch, key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a split of {len(self)}")
        index %= len(self)
        row = int(self.rows[index])
        config, tables = self.config, self.tables
        draws = self._draw(epoch, index, *time)
        future, past, status, command = load_ego(tables, row, self.steps, config.command, config.status, self._guard)
        boxes = load_boxes(tables, row) if tables.annotated else None
        followed = self.with_motion and tables.annotated
        sample = dataclasses.replace(
            self._sense(row, draws),
            future=future,
            past=past,
            status=status,
            command=command,
            boxes=None if boxes is None else boxes[boxes.num_points.sum(1) >= self.min_points],
            motion=load_motion(tables, row, self.steps, self.min_points) if followed else None,
            history=tuple(self._sense(before, draws) for before in self._rows_before(row)),
        )
        if self.paster is not None and draws.paste is not None and boxes is not None:
            radars = draws.corruptor.there(tables, row, config.radars)
            sample = self.paster(sample, boxes, draws.paste, radars, self._guard)
        if draws.aug_from_ego is not None:
            sample = transform_sample(sample, draws.aug_from_ego)
        if self.with_map:
            found = self._guard(lambda: crop_map(tables, row, self.grid, draws.aug_from_ego))
            if found is not None:
                sample = dataclasses.replace(sample, map_mask=found[0], map_known=found[1])
        return sample

    def _rows_before(self, row: int) -> list[int]:
        """Keyframes of the same scene before a sample, newest first."""
        rows: list[int] = []
        while len(rows) < self.keyframes - 1 and (row := int(self.tables.sample_prev[row])) >= 0:
            rows.append(row)
        return rows

    def _sense(self, row: int, draws: _Draws) -> Sample:
        """A keyframe's sensors in its own ego, without targets."""
        config, tables, guard, corruptor = self.config, self.tables, self._guard, draws.corruptor
        cameras = lidar = radar = None
        if "camera" in config.sensors:
            cameras = load_cameras(tables, row, config.cameras, config.image_size, draws.images, guard, corruptor)
        if "lidar" in config.sensors:
            lidar = load_lidar(tables, row, config.lidar_sweeps, config.lidar_min_distance, guard, corruptor)
        if "radar" in config.sensors:
            sweeps, passing = config.radar_sweeps, config.radar_filter
            radar = load_radars(tables, row, config.radars, sweeps, passing, guard=guard, corruptor=corruptor)
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

    @property
    def min_points(self) -> int:
        """Boxes with fewer LiDAR + radar points are left out."""
        return self.config.min_points if self.training else 0

    def classes(self) -> np.ndarray:
        """[len, number of classes] bool: has the sample a box of the class that counts? For class-balanced orders."""
        tables = self.tables
        found = np.zeros((len(self), len(DETECTION_CLASSES)), dtype=bool)
        for index, row in enumerate(self.rows):
            boxes = slice(tables.box_start[row], tables.box_start[row + 1])
            counts = tables.box_points[boxes].sum(axis=1) >= self.min_points
            there = tables.box_class[boxes][counts]
            found[index, there[there >= 0]] = True
        return found

    def _draw(self, epoch: int, index: int, time: int = 0) -> _Draws:
        """The random changes of a sample in an epoch, without those that have faded."""
        augment, always = self.augment, Corruptor(self._corruptions)
        if augment is None:
            return _Draws(always)
        rng = np.random.default_rng([self.seed, epoch, index, time])
        aug_from_ego = draw_bev_augmentation(augment, rng)
        # Drawn for all channels in a fixed order, so that a missing camera does not change the others.
        images = {channel: draw_image_augmentation(augment, rng) for channel in CAMERAS}
        faded = augment.fade if self.epochs is not None and epoch >= self.epochs - augment.fade_epochs else ()
        return _Draws(
            self._corrupt(augment.corrupt, np.random.default_rng([self.seed, epoch, index, time, 2])) or always,
            aug_from_ego=None if "bev" in faded else aug_from_ego,
            images=None if "image" in faded else images,
            paste=None if "paste" in faded else np.random.default_rng([self.seed, epoch, index, time, 1]),
        )

    def _corrupt(self, probability: float, rng: np.random.Generator) -> Corruptor | None:
        """What is wrong with a training sample's sensors in addition, if anything is."""
        if not self._candidates or rng.random() >= probability:
            return None
        return Corruptor([*self._corruptions, draw_one(self._candidates, rng)], int(rng.integers(2**63)))


@dataclass(frozen=True)
class _Draws:
    """What is random about a sample; None is no change."""

    corruptor: Corruptor
    aug_from_ego: np.ndarray | None = None
    images: dict[str, ImageAugmentation] | None = None
    paste: np.random.Generator | None = None


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


def _check_can_bus(config: DataConfig, tables: Tables) -> None:
    sources = (("command", "route"), ("status", "can_bus"))
    wanted = [f"data.{key}: {source}" for key, source in sources if getattr(config, key) == source]
    if wanted and not has_can_bus(tables):
        warnings.warn(
            f"{' and '.join(wanted)} need the CAN bus expansion, which {tables.root} lacks: all are unknown. Unpack it "
            "there, or choose another source",
            stacklevel=3,
        )
