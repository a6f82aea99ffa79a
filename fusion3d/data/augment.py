"""Augmentation of the world: all of a sample turned, scaled and mirrored together in the ground plane."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from fusion3d.config import AugmentConfig
from fusion3d.types import COMMANDS, Boxes, EgoStatus, Sample, Trajectory

_MIRRORED = {COMMANDS.index("left"): COMMANDS.index("right"), COMMANDS.index("right"): COMMANDS.index("left")}


def draw_bev_augmentation(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A random ``aug_from_ego`` [4, 4] float64: mirror, scale, then turn. Always takes the same number of draws."""
    turn, scale, flip_x, flip_y = rng.uniform(size=4)
    low, high = config.bev_scale
    return bev_matrix(
        math.radians(config.bev_rotation) * (2 * turn - 1),
        low + (high - low) * scale,
        bool(config.bev_flip and flip_x < 0.5),
        bool(config.bev_flip and flip_y < 0.5),
    )


def bev_matrix(angle: float = 0.0, scale: float = 1.0, flip_x: bool = False, flip_y: bool = False) -> np.ndarray:
    """[4, 4] float64 that mirrors (``flip_x``: x becomes -x), scales all axes and turns about z [rad]."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-scale if flip_x else scale, -scale if flip_y else scale, scale])
    return matrix


def transform_sample(sample: Sample, aug_from_ego: np.ndarray | Tensor) -> Sample:
    """The sample as it is in the frame ``aug``; the arguments stay as they are.

    Positions are multiplied by the matrix; velocities and accelerations are turned, mirrored and scaled like
    the world they belong to; box sizes are scaled; a heading follows its direction vector; a yaw rate
    changes sign in a mirror. ``left`` and ``right`` are seen from the vehicle, so that any mirroring (but
    not both at once, which is a half turn) swaps them. Applied after another augmentation it is composed
    with it.

    Args:
        sample: without ``map_mask``: a raster is cut in the augmented frame in the first place.
        aug_from_ego: [4, 4], made of a rotation about z, mirrorings and one scale.

    Raises:
        ValueError: the sample has a map mask, or the matrix is of another kind.
    """
    matrix = torch.as_tensor(aug_from_ego, dtype=torch.float64)
    scale = _scale_of(matrix)
    if sample.map_mask is not None:
        raise ValueError("a sample with a map mask cannot be augmented: cut the mask with aug_from_ego (crop_map)")
    mirrored = bool(torch.det(matrix[:2, :2]) < 0)
    cameras = sample.cameras and dataclasses.replace(
        sample.cameras, ego_from_cam=(matrix @ sample.cameras.ego_from_cam.double()).float()
    )
    return dataclasses.replace(
        sample,
        aug_from_ego=(matrix @ sample.aug_from_ego.double()).float(),
        cameras=cameras,
        lidar=None if sample.lidar is None else _move_points(sample.lidar, matrix),
        radar=None if sample.radar is None else _move_radar(sample.radar, matrix),
        boxes=sample.boxes and _move_boxes(sample.boxes, matrix, scale),
        future=sample.future and _move_trajectory(sample.future, matrix),
        past=sample.past and _move_trajectory(sample.past, matrix),
        status=sample.status and _move_status(sample.status, matrix, mirrored),
        command=_MIRRORED.get(sample.command, sample.command) if mirrored else sample.command,
        history=tuple(transform_sample(before, matrix) for before in sample.history),
    )


def _scale_of(matrix: Tensor) -> float:
    """The scale of an augmentation matrix, or ValueError."""
    linear = matrix[:3, :3]
    scale = float(linear[2, 2])
    rigid = torch.allclose(linear @ linear.T, scale**2 * torch.eye(3, dtype=linear.dtype), atol=1e-6)
    flat = not matrix[:3, 3].any() and not linear[2, :2].any() and not linear[:2, 2].any()
    if scale <= 0 or not rigid or not flat:
        raise ValueError(f"aug_from_ego must turn about z, mirror in x or y and scale evenly; found {matrix.tolist()}")
    return scale


def _move_points(points: Tensor, matrix: Tensor) -> Tensor:
    moved = points.clone()
    moved[:, :3] = points[:, :3] @ matrix[:3, :3].T.float()
    return moved


def _move_radar(returns: Tensor, matrix: Tensor) -> Tensor:
    moved = _move_points(returns, matrix)
    moved[:, 4:6] = _turn(returns[:, 4:6], matrix)  # vx, vy
    return moved


def _turn(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors [..., 2] in the ground plane under the matrix without its translation."""
    return vectors @ matrix[:2, :2].T.to(vectors)


def _turn_yaw(yaw: Tensor, matrix: Tensor) -> Tensor:
    heading = _turn(torch.stack([yaw.cos(), yaw.sin()], dim=-1).double(), matrix)
    return torch.atan2(heading[..., 1], heading[..., 0]).to(yaw)


def _move_boxes(boxes: Boxes, matrix: Tensor, scale: float) -> Boxes:
    return dataclasses.replace(
        boxes,
        center=boxes.center @ matrix[:3, :3].T.float(),
        size=boxes.size * scale,
        yaw=_turn_yaw(boxes.yaw, matrix),
        velocity=_turn(boxes.velocity, matrix),
    )


def _move_trajectory(path: Trajectory, matrix: Tensor) -> Trajectory:
    """What is not known stays zero."""
    yaw = torch.where(path.mask, _turn_yaw(path.yaw, matrix), path.yaw)
    return Trajectory(position=_turn(path.position, matrix), yaw=yaw, mask=path.mask)


def _move_status(status: EgoStatus, matrix: Tensor, mirrored: bool) -> EgoStatus:
    return EgoStatus(
        velocity=_turn(status.velocity, matrix),
        acceleration=_turn(status.acceleration, matrix),
        yaw_rate=-status.yaw_rate if mirrored else status.yaw_rate,
    )
