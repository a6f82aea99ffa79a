"""Checks of what fusion3d itself does to the data: projection there and back, augmentation and its inverse."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.doctor.finding import Finding
from fusion3d.geometry import apply, points_in_box
from fusion3d.types import BEVGrid, Sample

_SEED = 0


def check_round_trip(dataset: NuScenesDataset, indices: list[int]) -> list[Finding]:
    """A pixel, lifted to a depth, moved to ego and projected again, is the same pixel."""
    worst: dict[str, float] = {}
    for index in indices:
        cameras = dataset[index].cameras
        if cameras is None:
            continue
        rows, cols = cameras.images.shape[-2:]
        pixel = torch.tensor([[0.0, 0.0], [cols - 1.0, 0.0], [cols / 2, rows / 2], [3.0, rows - 1.0]])
        for channel, image_from_cam, ego_from_cam in zip(
            cameras.channels, cameras.image_from_cam.double(), cameras.ego_from_cam.double(), strict=True
        ):
            for depth in (1.0, 10.0, 60.0):
                flat = torch.cat([pixel, torch.ones(4, 1)], dim=1).double()
                cam = torch.linalg.solve(image_from_cam[:3, :3], flat.T).T * depth
                again = apply(torch.linalg.inv(ego_from_cam), apply(ego_from_cam, cam)) @ image_from_cam[:3, :3].T
                off = float((again[:, :2] / again[:, 2:] - pixel).abs().max())
                worst[channel] = max(worst.get(channel, 0.0), off)
    if not worst:
        return [Finding("round trip", "cameras", None, "no camera in the samples looked at")]
    return [
        Finding("round trip", channel, off < 0.01, f"pixel to ego and back is {off:.1e} px off (limit 0.01)")
        for channel, off in worst.items()
    ]


def check_augmentation(config: DataConfig, split: str, grid: BEVGrid, indices: list[int]) -> list[Finding]:
    """Augmented and turned back, points and boxes are where they were, and boxes hold the same points."""
    plain = NuScenesDataset(config, split, grid, training=False)
    changed = NuScenesDataset(config, split, grid, AugmentConfig(), _SEED, training=False)
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
    boxes = sample.boxes
    return points_in_box(sample.lidar[:, :3], boxes.center, boxes.size, boxes.yaw).sum(1).numpy()


def first_sweep_only(config: DataConfig) -> DataConfig:
    """The configuration with keyframe clouds alone, which is all that these checks need."""
    return dataclasses.replace(config, lidar_sweeps=1, radar_sweeps=1)
