"""A batch with fewer sensors: chosen ones for evaluation, random losses for training. Targets stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from fusion3d.config import TrainConfig
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.types import CAMERAS, RADAR_FIELDS, RADARS, SENSORS, Batch, Cameras, PointCloud

_RADAR_COLUMN = RADAR_FIELDS.index("sensor")


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
    return dataclasses.replace(batch, cameras=cameras, lidar=lidar, radar=radar)


def drop_sensors(batch: Batch, config: TrainConfig, generator: torch.Generator) -> Batch:
    """The batch after random losses, for training one model for every subset of sensors.

    Each sample loses each kind of sensor with probability ``drop_sensor``, but never the last kind that it
    has; each of its images is lost with probability ``drop_camera`` and each radar with ``drop_radar``, but
    never the last of its kind.

    Args:
        batch: any batch.
        config: the probabilities.
        generator: on the CPU; the same state gives the same losses on any device.
    """
    there = torch.stack([batch.present[kind].cpu() for kind in SENSORS])  # [3, B]
    lost = torch.rand(there.shape, generator=generator) < config.drop_sensor
    kept = _spare_one(there, lost, torch.rand(there.shape, generator=generator))
    kept = {kind: kept[row] for row, kind in enumerate(SENSORS)}
    return dataclasses.replace(
        batch,
        cameras=_drop_cameras(batch.cameras, kept["camera"], config.drop_camera, generator),
        lidar=_drop_samples(batch.lidar, kept["lidar"]),
        radar=_drop_radars(_drop_samples(batch.radar, kept["radar"]), len(batch), config.drop_radar, generator),
    )


def _spare_one(there: Tensor, lost: Tensor, lot: Tensor) -> Tensor:
    """[N, B] bool: of N things in B samples, those there and not lost; were all lost, the one of largest lot."""
    kept = there & ~lost
    spared = torch.zeros_like(there).scatter(0, torch.where(there, lot, -1.0).argmax(0, keepdim=True), True) & there
    return kept | (spared & ~kept.any(0, keepdim=True))


def _drop_cameras(
    cameras: Cameras | None, samples: Tensor, probability: float, generator: torch.Generator
) -> Cameras | None:
    slots = (len(CAMERAS), len(samples))  # drawn for all slots: what is absent does not shift the other draws
    lost, lot = torch.rand(slots, generator=generator) < probability, torch.rand(slots, generator=generator)
    if cameras is None:
        return None
    channel = torch.tensor([CAMERAS.index(name) for name in cameras.channels], dtype=torch.int64)
    sample = cameras.batch_index.cpu()
    there = torch.zeros(slots, dtype=torch.bool)
    there[channel, sample] = True
    kept = _spare_one(there, lost, lot) & samples
    return _keep_cameras(cameras, kept[channel, sample])


def _drop_radars(
    radar: PointCloud | None, size: int, probability: float, generator: torch.Generator
) -> PointCloud | None:
    slots = (len(RADARS), size)
    lost, lot = torch.rand(slots, generator=generator) < probability, torch.rand(slots, generator=generator)
    if radar is None:
        return None
    sensor, sample = radar.points[:, _RADAR_COLUMN].long(), radar.batch_index
    there = torch.zeros(slots, dtype=torch.bool, device=sensor.device)
    there[sensor, sample] = True
    kept = _spare_one(there, lost.to(there.device), lot.to(there.device))
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
