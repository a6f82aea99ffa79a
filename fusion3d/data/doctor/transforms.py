"""Checks of what fusion3d itself does to the data: projection against the tables, augmentation and its inverse."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from fusion3d import ops
from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.doctor.finding import Finding
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import apply, rotation_from_quaternion
from fusion3d.types import BEVGrid, Sample

_SEED = 0


def check_round_trip(dataset: NuScenesDataset, indices: list[int]) -> list[Finding]:
    """A pixel of a file, moved to the reference frame by the tables, is projected by the sample to where it belongs."""
    worst: dict[str, float] = {}
    for index in indices:
        cameras, row = dataset[index].cameras, int(dataset.rows[index])
        if cameras is None:
            continue
        for channel, image_from_cam, ego_from_cam in zip(
            cameras.channels, cameras.image_from_cam.double(), cameras.ego_from_cam.double(), strict=True
        ):
            pixel, point = _seen(dataset.tables, row, dataset.tables.key(row, channel))
            image = apply(torch.linalg.inv(ego_from_cam), torch.from_numpy(point)) @ image_from_cam[:3, :3].T
            expected = _resized(pixel, dataset.tables.data_size[dataset.tables.key(row, channel)], dataset.config)
            off = np.abs((image[:, :2] / image[:, 2:]).numpy() - expected).max()
            worst[channel] = float(np.maximum(worst.get(channel, 0.0), off))
    if not worst:
        return [Finding("round trip", "cameras", None, "no camera in the samples looked at")]
    return [
        Finding("round trip", channel, off < 1.5, f"pixel to ego and back is {off:.2f} px off (limit 1.5)")
        for channel, off in worst.items()
    ]


def _seen(tables: Tables, sample: int, data: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, 2] of a file, and [N, 3] points in the reference frame that they see: tables only, step by step."""
    rows, cols = tables.data_size[data].tolist()
    corners = np.array([[0.0, 0.0], [cols - 1.0, 0.0], [cols / 2, rows / 2], [3.0, rows - 1.0]])
    pixel, depth = np.tile(corners, (3, 1)), np.repeat([1.0, 10.0, 60.0], 4)[:, None]
    point = np.linalg.solve(tables.intrinsic(data), np.c_[pixel, np.ones(12)].T).T * depth
    calibration, pose, now = tables.data_calibration[data], tables.data_pose[data], tables.sample_pose[sample]
    for rotation, translation in (
        (tables.calibration_rotation[calibration], tables.calibration_translation[calibration]),
        (tables.pose_rotation[pose], tables.pose_translation[pose]),
    ):
        point = point @ rotation_from_quaternion(rotation).T + translation
    return pixel, (point - tables.pose_translation[now]) @ rotation_from_quaternion(tables.pose_rotation[now])


def _resized(pixel: np.ndarray, old: np.ndarray, config: DataConfig) -> np.ndarray:
    """Where pixels of a file belong in the sample's image: it is filled, cropped at the top and on both sides."""
    rows, cols = config.image_size
    factor = max(rows / old[0], cols / old[1])
    return (pixel + 0.5) * factor - [(factor * old[1] - cols) / 2, factor * old[0] - rows] - 0.5


def check_augmentation(config: DataConfig, split: str, grid: BEVGrid, indices: list[int]) -> list[Finding]:
    """Augmented and turned back, points and boxes are where they were, and boxes hold the same points."""
    plain = NuScenesDataset(config, split, grid, training=False)
    changed = NuScenesDataset(config, split, grid, AugmentConfig(bev_shift=0.5), _SEED, training=False)
    back, lost, boxes = [], 0, 0
    for index in indices:
        before, after = plain[index], changed[index]
        ego_from_aug = torch.linalg.inv(after.aug_from_ego)
        for one, other in ((before.lidar, after.lidar), (before.radar, after.radar)):
            if one is not None and other is not None and len(one):
                back.append(float((apply(ego_from_aug, other[:, :3]) - one[:, :3]).abs().max()))
        if before.boxes is not None and after.boxes is not None and len(before.boxes):
            back.append(float((apply(ego_from_aug, after.boxes.center) - before.boxes.center).abs().max()))
        counts = [_points_per_box(sample) for sample in (before, after)]
        if counts[0] is not None and counts[1] is not None:
            lost += int((np.abs(counts[0] - counts[1]) > np.maximum(1, 0.02 * counts[0])).sum())
            boxes += len(counts[0])
    if not back:
        return [Finding("augmentation", "points and boxes", None, "no point and no box in the samples looked at")]
    detail = f"{max(back):.1e} m off after the inverse (limit 1e-3); {lost} of {boxes} boxes hold other points"
    return [Finding("augmentation", "points and boxes", max(back) < 1e-3 and lost <= 0.02 * boxes, detail)]


def _points_per_box(sample: Sample) -> np.ndarray | None:
    if sample.lidar is None or sample.boxes is None:
        return None
    boxes = torch.cat([sample.boxes.center, sample.boxes.size, sample.boxes.yaw[:, None]], dim=1)
    return ops.points_in_boxes(sample.lidar, boxes).count.numpy()


def first_sweep_only(config: DataConfig) -> DataConfig:
    """The configuration with keyframe clouds alone, which is all that these checks need."""
    return dataclasses.replace(config, lidar_sweeps=1, radar_sweeps=1)
