"""A batch with fewer sensors: chosen ones for evaluation, random losses for training. Targets stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import combinations

import torch
from torch import Tensor

from fusion3d.config import TrainConfig
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.types import CAMERAS, RADAR_FIELDS, RADARS, SENSORS, Batch, Cameras, PointCloud

_RADAR_COLUMN = RADAR_FIELDS.index("sensor")
_SUBSETS = tuple(subset for size in (1, 2, 3) for subset in combinations(SENSORS, size))


def select_sensors(batch: Batch, sensors: Iterable[str]) -> Batch:
    """The batch with the named sensors only.

    Args:
        batch: any batch.
        sensors: kinds ("camera", "lidar", "radar") and single channels ("CAM_FRONT", "RADAR_FRONT",
            "LIDAR_TOP").

    Returns:
        The batch. A sample whose chosen cameras are all absent has no camera any more. With chosen radars it still
        counts as having radar: a batch does not know which of them there were, and one that saw nothing is there.

    Raises:
        ValueError: an unknown name.
    """
    names = set(sensors)
    known = {*SENSORS, *CAMERAS, *RADARS, REFERENCE_CHANNEL}
    if names - known:
        raise ValueError(f"unknown sensors {sorted(names - known)}; known: {', '.join(sorted(known))}")
    cameras, lidar, radar = batch.cameras, batch.lidar, batch.radar
    if cameras is not None and "camera" not in names:
        keep = torch.tensor([channel in names for channel in cameras.channels])
        cameras = _keep_cameras(cameras, keep)
    if lidar is not None and not names & {"lidar", REFERENCE_CHANNEL}:
        lidar = None
    if radar is not None and "radar" not in names:
        chosen = torch.tensor([channel in names for channel in RADARS], device=radar.points.device)
        radar = (
            _keep_points(radar, chosen[radar.points[:, _RADAR_COLUMN].long()], radar.present) if chosen.any() else None
        )
    history = tuple(dataclasses.replace(past, batch=select_sensors(past.batch, names)) for past in batch.history)
    return dataclasses.replace(batch, cameras=cameras, lidar=lidar, radar=radar, history=history)


def drop_sensors(batch: Batch, config: TrainConfig, generator: torch.Generator, rank: int = 0, world: int = 1) -> Batch:
    """The batch after random losses, for training one model for every subset of sensors.

    Each sample loses each kind of sensor with probability ``drop_sensor``, but never the last kind that it
    has; each of its images is lost with probability ``drop_camera`` and each radar with ``drop_radar``, but
    never the last of its kind. What is lost now is lost in the keyframes before, too.

    Args:
        batch: any batch.
        config: the probabilities.
        generator: on the CPU; the same state gives the same losses on any device.
        rank, world: this process, and how many share the step. Sample i here is sample i * world + rank of all, and
            loses what it would in one batch of them all; so ``BatchOrder`` deals them.
    """
    draws = []
    for things in (SENSORS, CAMERAS, RADARS):  # drawn for all that could be: what is absent does not shift other draws
        slots = (len(things), len(batch) * world)
        chance, lot = (torch.rand(slots, generator=generator)[:, rank::world] for _ in range(2))
        draws.append(_Draw(chance, lot))
    return _lose(batch, config, *draws)


def draw_subsets(
    batch: Batch, config: TrainConfig, count: int, generator: torch.Generator, rank: int = 0, world: int = 1
) -> tuple[Batch, tuple[Batch, ...]]:
    """The batch after random losses of single cameras and radars, and the same under several subsets of its kinds.

    Each sample has subsets of its own, drawn one after the other and none twice, each as likely as ``drop_sensor``
    makes it among those that are left; a sample that has fewer than ``count`` sees them again from the first on.

    Args:
        batch, config, generator, rank, world: as of ``drop_sensors``.
        count: of subsets.
    """
    seen = drop_sensors(batch, dataclasses.replace(config, drop_sensor=0.0), generator, rank, world)
    lot = torch.rand((len(_SUBSETS), len(batch) * world), generator=generator, dtype=torch.float64)[:, rank::world]
    there = torch.stack([seen.present[kind].cpu() for kind in SENSORS])
    return seen, tuple(_keep_kinds(seen, kept) for kept in _different(there, lot, config.drop_sensor, count))


def _different(there: Tensor, lot: Tensor, probability: float, count: int) -> list[Tensor]:
    """Which of 3 kinds of sensors B samples keep, ``count`` times: [3, B] bool each.

    Args:
        there: [3, B] bool.
        lot: [7, B] float64, uniform.
        probability: of a kind to be lost.
        count: how often.
    """
    subset = torch.tensor([[kind in subset for kind in SENSORS] for subset in _SUBSETS])  # [7, 3]
    fits = ~(subset[:, :, None] & ~there).any(1)  # [7, B]
    num_there, size = there.sum(0).double(), subset.sum(1, keepdim=True).double()
    chance = probability ** (num_there - size).clamp(min=0) * (1 - probability) ** size
    chance += torch.where(size == 1, probability**num_there / num_there.clamp(min=1), 0)  # all lost: one is spared
    chance = torch.where(fits, chance, 0)
    # Weighted draws without replacement (Efraimidis and Spirakis, 2006).
    key = torch.where(chance > 0, lot.clamp(min=1e-300).log() / chance, -torch.inf)
    order, most = key.argsort(dim=0, descending=True, stable=True), (chance > 0).sum(0).clamp(min=1)
    rows = (order.gather(0, (number % most)[None])[0] for number in range(count))
    return [subset[row].T & there for row in rows]


def _keep_kinds(batch: Batch, kept: Tensor) -> Batch:
    """The batch with the kinds of sensors that each sample keeps, [3, B] bool, now and in the keyframes before."""
    camera, lidar, radar = kept
    cameras = batch.cameras
    if cameras is not None:
        cameras = _keep_cameras(cameras, camera[cameras.batch_index.cpu()])
    history = [dataclasses.replace(p, batch=_keep_kinds(p.batch, kept[:, list(p.row)])) for p in batch.history]
    return dataclasses.replace(
        batch,
        cameras=cameras,
        lidar=_drop_samples(batch.lidar, lidar),
        radar=_drop_samples(batch.radar, radar),
        history=tuple(history),
    )


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Random numbers in [0, 1) for N things in B samples."""

    chance: Tensor  # [N, B] the thing is lost where it is below the probability
    lot: Tensor  # [N, B] were all that are there lost, the one of largest lot is spared

    def __getitem__(self, rows: tuple[int, ...]) -> _Draw:
        return _Draw(self.chance[:, list(rows)], self.lot[:, list(rows)])


def _lose(batch: Batch, config: TrainConfig, kinds: _Draw, cameras: _Draw, radars: _Draw) -> Batch:
    there = torch.stack([batch.present[kind].cpu() for kind in SENSORS])  # [3, B]
    kept = dict(zip(SENSORS, _spare_one(there, kinds, config.drop_sensor), strict=True))
    history = []
    for past in batch.history:
        lost = _lose(past.batch, config, *(draw[past.row] for draw in (kinds, cameras, radars)))
        history.append(dataclasses.replace(past, batch=lost))
    return dataclasses.replace(
        batch,
        cameras=_drop_cameras(batch.cameras, kept["camera"], config.drop_camera, cameras),
        lidar=_drop_samples(batch.lidar, kept["lidar"]),
        radar=_drop_radars(_drop_samples(batch.radar, kept["radar"]), config.drop_radar, radars),
        history=tuple(history),
    )


def _spare_one(there: Tensor, draw: _Draw, probability: float) -> Tensor:
    """[N, B] bool: of N things in B samples, those there and not lost; were all lost, the one of largest lot."""
    kept = there & (draw.chance >= probability)
    best = torch.where(there, draw.lot, -1.0).argmax(0, keepdim=True)
    spared = torch.zeros_like(there).scatter(0, best, True) & there
    return kept | (spared & ~kept.any(0, keepdim=True))


def _drop_cameras(cameras: Cameras | None, samples: Tensor, probability: float, draw: _Draw) -> Cameras | None:
    if cameras is None:
        return None
    channel = torch.tensor([CAMERAS.index(name) for name in cameras.channels], dtype=torch.int64)
    sample = cameras.batch_index.cpu()
    there = torch.zeros(draw.lot.shape, dtype=torch.bool)
    there[channel, sample] = True
    kept = _spare_one(there, draw, probability) & samples
    return _keep_cameras(cameras, kept[channel, sample])


def _drop_radars(radar: PointCloud | None, probability: float, draw: _Draw) -> PointCloud | None:
    if radar is None:
        return None
    sensor, sample = radar.points[:, _RADAR_COLUMN].long(), radar.batch_index
    there = torch.zeros(draw.lot.shape, dtype=torch.bool, device=sensor.device)
    there[sensor, sample] = True
    kept = _spare_one(there.cpu(), draw, probability).to(there.device)
    return _keep_points(radar, kept[sensor, sample], radar.present)


def _drop_samples(cloud: PointCloud | None, samples: Tensor) -> PointCloud | None:
    """The cloud without the samples that are False; None where no sample keeps it."""
    if cloud is None:
        return None
    samples = samples.to(cloud.present.device)
    return _keep_points(cloud, samples[cloud.batch_index], cloud.present & samples) if samples.any() else None


def _keep_points(cloud: PointCloud, keep: Tensor, present: Tensor) -> PointCloud:
    return PointCloud(points=cloud.points[keep], batch_index=cloud.batch_index[keep], present=present)


def _keep_cameras(cameras: Cameras, keep: Tensor) -> Cameras | None:
    rows = keep.nonzero()[:, 0]
    if len(rows) == 0:
        return None
    index = rows.to(cameras.images.device)
    return Cameras(
        images=cameras.images[index],
        image_from_cam=cameras.image_from_cam[index],
        ego_from_cam=cameras.ego_from_cam[index],
        batch_index=cameras.batch_index[index],
        channels=tuple(cameras.channels[row] for row in rows.tolist()),
    )
