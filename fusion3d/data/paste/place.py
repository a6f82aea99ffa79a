"""Setting objects of the database into a sample, for every sensor that it has.

Ground-truth paste as in SECOND (Yan et al., 2018), multimodal as in MoCa (Zhang et al., 2020) and PointAugmenting (Wang
et al., 2021): an object comes with its points, its radar returns and its image patches, at the very place where it was
seen, so that each sensor sees it as it once did. Unlike there, sweeps trail behind moving objects as they did, and
nothing stands in the vehicle's own way. As there, what it would hide from the LiDAR and radar stays.
Letters: M images, K boxes, N candidates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.config import DataConfig, PasteConfig
from fusion3d.data.guard import Guard, strict
from fusion3d.data.paste.cut import LIDAR_TIME, RADAR_TIME, lidar_inside, project, radar_inside, seen, wholly_seen
from fusion3d.data.paste.database import Cutting, Objects
from fusion3d.data.paste.images import paint
from fusion3d.data.radar import passes
from fusion3d.errors import ConfigError
from fusion3d.types import (
    DETECTION_CLASSES,
    EGO_CENTER,
    EGO_SIZE,
    KEY_SWEEP,
    RADAR_FIELDS,
    RADARS,
    BEVGrid,
    Boxes,
    Cameras,
    Motion,
    Sample,
    Trajectory,
)

_PATH_POINTS = 4  # places of the vehicle that are looked at between two of its path
_CLEARANCE = 0.3  # [m] kept on each side of the vehicle


@dataclass(frozen=True, eq=False)
class Paster:
    """Sets objects into samples; made once for a data set, it holds no state.

    Args:
        objects: the opened database.
        config: how much is pasted.
        data: what is read of a sample; objects are given the same filters.
        grid: objects outside of it are not pasted.
    """

    objects: Objects
    config: PasteConfig
    data: DataConfig
    grid: BEVGrid
    pools: tuple[np.ndarray, ...] = ()  # for each class, the objects that are good enough

    @staticmethod
    def open(config: PasteConfig, data: DataConfig, grid: BEVGrid) -> Paster:
        """A paster from a database on disk.

        Raises:
            DataError: the database is missing or damaged.
            ConfigError: it is of another split than is trained on, has fewer sweeps than a sample, or no object that
                is good enough.
        """
        objects = Objects.open(config.database)
        if objects.source != (data.version, data.train_split):
            raise ConfigError(
                f"augment.paste.database {objects.root} is cut out of {' '.join(objects.source)}, and data.version and "
                f"data.train_split are {data.version} and {data.train_split}: make it of what is trained on"
            )
        for name, sensor in (("lidar_sweeps", "lidar"), ("radar_sweeps", "radar")):
            has, wanted = getattr(objects, name), getattr(data, name)
            if sensor in data.sensors and has < wanted:
                raise ConfigError(
                    f"augment.paste.database {objects.root} was made with {has} {name.replace('_', ' ')}, data.{name} "
                    f"is {wanted}: make it with as many, or read fewer"
                )
        boxes, pools = objects.boxes, []
        good = grid.cell_of(boxes.center)[1]
        if "camera" in data.sensors and config.min_visibility > 0:
            good &= boxes.visibility >= config.min_visibility
        for label, name in enumerate(DETECTION_CLASSES):
            enough = boxes.num_points[:, 0] >= getattr(config.min_points, name)
            pools.append((good & enough & (boxes.label == label)).nonzero()[:, 0].numpy())
        if not any(
            len(pool) for pool, name in zip(pools, DETECTION_CLASSES, strict=True) if getattr(config.counts, name)
        ):
            raise ConfigError(
                f"augment.paste.database {objects.root} has no object that augment.paste.counts, min_points and "
                "min_visibility ask for; ask for less, or make it from more scenes"
            )
        return Paster(objects, config, data, grid, tuple(pools))

    def __call__(
        self,
        sample: Sample,
        everything: Boxes,
        rng: np.random.Generator,
        radars: Sequence[str] = RADARS,
        guard: Guard = strict,
    ) -> Sample:
        """The sample with objects set in; the argument stays as it is.

        An object is taken if it stands clear of all boxes, of the vehicle and of its way; if every camera that would
        see it has a patch of it, and the LiDAR enough points; and if some sensor that the sample has sees it at all.
        Points and returns that were there are taken out of its box. Its box counts the points and returns pasted.

        Args:
            sample: annotated, before any BEV augmentation.
            everything: its boxes, those that are no training targets too.
            rng: of what is drawn.
            radars: those that the sample has, whether they saw anything or not.
            guard: what happens with a broken file of the database.
        """
        assert sample.boxes is not None
        rows = self._draw(everything, rng)
        if not len(rows):
            return sample
        candidates = self.objects.boxes[torch.from_numpy(rows)]
        look = _Look.at(sample.cameras, everything, candidates)
        clash = _clashes(candidates, Boxes.cat([everything, _way(sample)]))
        taken: list[int] = []
        pieces: list[Cutting] = []
        instances = {*everything.instance}
        for n, row in enumerate(rows.tolist()):
            if clash.alone[n] or clash.pairs[n, taken].any() or candidates.instance[n] in instances:
                continue
            if look is not None and not look.allows(n, taken, self.config.max_occlusion):
                continue
            piece = guard(lambda row=row: self._fit(row, sample, radars))
            if piece is None or not self._is_seen(piece, n, candidates, sample, look):
                continue
            taken.append(n)
            pieces.append(piece)
            instances.add(candidates.instance[n])
        return self._set(sample, everything, candidates[torch.tensor(taken, dtype=torch.int64)], pieces)

    def _draw(self, everything: Boxes, rng: np.random.Generator) -> np.ndarray:
        """[N] objects that fill each class up to its count, in random order."""
        drawn = []
        for label, (name, pool) in enumerate(zip(DETECTION_CLASSES, self.pools, strict=True)):
            missing = getattr(self.config.counts, name) - int((everything.label == label).sum())
            drawn.append(rng.choice(pool, size=min(max(missing, 0), len(pool)), replace=False))
        return rng.permutation(np.concatenate(drawn).astype(np.int64))

    def _fit(self, row: int, sample: Sample, radars: Sequence[str]) -> Cutting:
        """What this sample's sensors would have of an object: no older sweeps, no other radars, the same filter; and no
        Doppler shift.
        """
        channels = () if sample.cameras is None else sample.cameras.channels
        cutting = self.objects.read(row, channels)
        lidar, radar = cutting.lidar, cutting.radar
        lidar = lidar[lidar[:, LIDAR_TIME] <= _oldest(sample.lidar, LIDAR_TIME)]
        there = torch.tensor([channel in radars for channel in RADARS])
        fields = dict(zip(RADAR_FIELDS, radar.unbind(1), strict=True))
        states = {name: fields[name].numpy() for name in ("invalid_state", "dyn_prop", "ambig_state")}
        keep = there[fields["sensor"].long()] & torch.from_numpy(passes(states, self.data.radar_filter))
        radar = radar[keep & (fields["time"] <= _oldest(sample.radar, RADAR_TIME))]
        radar[:, RADAR_FIELDS.index("doppler")] = torch.nan  # of a sensor that moved otherwise
        return Cutting(lidar, radar, cutting.patches)

    def _is_seen(self, piece: Cutting, n: int, candidates: Boxes, sample: Sample, look: _Look | None) -> bool:
        least = getattr(self.config.min_points, DETECTION_CLASSES[int(candidates.label[n])])
        if sample.lidar is not None and len(piece.lidar) < least:
            return False
        cameras = look.cameras_of(n) if look is not None else ()
        if any(channel not in piece.patches for channel in cameras):
            return False
        points = len(piece.lidar) if sample.lidar is not None else 0
        returns = len(piece.radar) if sample.radar is not None else 0
        return points + returns + len(cameras) > 0

    def _set(self, sample: Sample, everything: Boxes, boxes: Boxes, pieces: list[Cutting]) -> Sample:
        if not pieces or sample.boxes is None:
            return sample
        lidar = _exchange(sample.lidar, boxes, [piece.lidar for piece in pieces], lidar_inside)
        radar = _exchange(sample.radar, boxes, [piece.radar for piece in pieces], radar_inside)
        count = [
            [0 if sample.lidar is None else len(piece.lidar), 0 if sample.radar is None else len(piece.radar)]
            for piece in pieces
        ]
        cameras = sample.cameras
        if cameras is not None:
            patches = [piece.patches for piece in pieces]
            images = paint(cameras, everything, boxes, patches, self.config.blend)
            cameras = dataclasses.replace(cameras, images=images)
        boxes = dataclasses.replace(boxes, num_points=torch.tensor(count))
        return dataclasses.replace(
            sample,
            lidar=lidar,
            radar=radar,
            cameras=cameras,
            boxes=Boxes.cat([sample.boxes, boxes]),
            motion=sample.motion and _join(sample.motion, len(sample.boxes), boxes),
        )


@dataclass(frozen=True)
class _Look:
    """How the cameras would see N candidates, and how they see the K boxes that are there."""

    channels: tuple[str, ...]
    hidden: Tensor  # [N] largest part of a window that would be covered, of the candidate's or of a box that is there
    pairs: Tensor  # [N, N] the same between candidates
    visible: Tensor  # [M, N] bool: is in the image, or at least in part in front of the camera and in it
    whole: Tensor  # [M, N] bool: of these, those that are wholly in front of the camera

    @staticmethod
    def at(cameras: Cameras | None, there: Boxes, candidates: Boxes) -> _Look | None:
        """None without images."""
        if cameras is None:
            return None
        _, windows_there, depth_there = project(cameras, there)
        corners, windows, depth = project(cameras, candidates)
        return _Look(
            channels=cameras.channels,
            hidden=_covered(windows, depth, windows_there, depth_there).flatten(1).amax(1)
            if len(there)
            else torch.zeros(len(candidates)),
            pairs=_covered(windows, depth, windows, depth).amax(2),
            visible=seen(windows),
            whole=wholly_seen(corners, windows),
        )

    def allows(self, n: int, taken: list[int], limit: float) -> bool:
        """Is no more hidden than the limit says, and is the candidate nowhere cut by the plane of a camera?"""
        hidden = max(float(self.hidden[n]), *(float(self.pairs[n, other]) for other in taken), 0.0)
        return hidden <= limit and bool((self.whole[:, n] | ~self.visible[:, n]).all())

    def cameras_of(self, n: int) -> tuple[str, ...]:
        """The channels that see a candidate."""
        return tuple(self.channels[m] for m in self.visible[:, n].nonzero()[:, 0].tolist())


def _covered(windows_a: Tensor, depth_a: Tensor, windows_b: Tensor, depth_b: Tensor) -> Tensor:
    """[N, K, M] the part of the farther one's window that the nearer one covers, for every pair, in every image."""
    a, b = windows_a[:, :, None], windows_b[:, None]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((w[..., 2:] - w[..., :2]).prod(-1) for w in (a, b))
    farther = torch.where(depth_a[:, :, None] >= depth_b[:, None], area_a, area_b)
    return (both / farther).nan_to_num(0.0, 0.0, 0.0).permute(1, 2, 0)


@dataclass(frozen=True)
class _Clashes:
    alone: Tensor  # [N] bool: overlaps something that is there
    pairs: Tensor  # [N, N] bool: overlap one another


def _clashes(candidates: Boxes, there: Boxes) -> _Clashes:
    """Which candidates overlap what is there, and one another, seen from above."""
    footprints = _footprints(candidates)
    return _Clashes(
        (ops.box_iou_bev(footprints, _footprints(there)) > 0).any(1), ops.box_iou_bev(footprints, footprints) > 0
    )


def _join(motion: Motion, at: int, boxes: Boxes) -> Motion:
    """Boxes put between others and what is no box, as things of which nobody knows how they go on."""
    count, steps = len(boxes), motion.path.mask.shape[1]
    now = Trajectory(boxes.center[:, :2], boxes.yaw, torch.ones(count, dtype=torch.bool))
    path = Trajectory(
        torch.zeros(count, steps, 2), torch.zeros(count, steps), torch.zeros(count, steps, dtype=torch.bool)
    )
    return Motion.cat([motion[:at], Motion(now, path, boxes.size, boxes.label), motion[at:]])


def _footprints(boxes: Boxes) -> Tensor:
    return torch.cat([boxes.center[:, :2], boxes.size[:, :2], boxes.yaw[:, None]], dim=1)


def _way(sample: Sample) -> Boxes:
    """The vehicle itself, now and on the way that it will drive, as boxes."""
    places = [torch.zeros(1, 3)]
    if sample.future is not None:
        known = sample.future.mask
        steps = torch.cat([sample.future.position, sample.future.yaw[:, None]], dim=1)[known]
        turn = torch.diff(steps[:, 2], prepend=torch.zeros(1))
        steps[:, 2] -= ((turn + torch.pi).div(2 * torch.pi).floor() * 2 * torch.pi).cumsum(0)  # no jump at half a turn
        ends = torch.cat([places[0], steps])
        share = torch.arange(1, _PATH_POINTS + 1)[None, :, None] / _PATH_POINTS
        places.append((ends[:-1, None] + share * (ends[1:] - ends[:-1])[:, None]).flatten(0, 1))
    pose = torch.cat(places)
    yaw = pose[:, 2]
    center = torch.stack(
        [pose[:, 0] + EGO_CENTER * yaw.cos(), pose[:, 1] + EGO_CENTER * yaw.sin(), torch.zeros_like(yaw)], dim=1
    )
    size = torch.tensor(EGO_SIZE) + 2 * torch.tensor([_CLEARANCE, _CLEARANCE, 0.0])
    return Boxes.of(center, size.expand(len(yaw), 3), yaw)


def _oldest(cloud: Tensor | None, column: int) -> float:
    """The age of the oldest sweep of a cloud [s], and a little."""
    return torch.inf if cloud is None or not len(cloud) else float(cloud[:, column].max()) + KEY_SWEEP


def _exchange(
    cloud: Tensor | None, boxes: Boxes, parts: list[Tensor], inside: Callable[[Tensor, Boxes], list[Tensor]]
) -> Tensor | None:
    """A cloud without what lies in the boxes, and with the parts instead. An absent one stays absent."""
    if cloud is None:
        return None
    stays = torch.ones(len(cloud), dtype=torch.bool)
    stays[torch.cat(inside(cloud, boxes))] = False
    return torch.cat([cloud[stays], *parts])
