"""Augmentation of the world: all of a sample turned, scaled, mirrored and shifted together.

The vehicle goes with its world: after a shift it is no longer at the origin but at the translation of ``aug_from_ego``.
Everything that has a place (points, boxes, the paths' positions) is where the matrix brings it; what has only a
direction (velocities, accelerations) is not shifted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fusion3d.config import AugmentConfig
from fusion3d.types import (
    COMMANDS,
    RADAR_FIELDS,
    Batch,
    Boxes,
    Cameras,
    EgoStatus,
    Forecast,
    Motion,
    Sample,
    Trajectory,
)

_MIRRORED = {COMMANDS.index("left"): COMMANDS.index("right"), COMMANDS.index("right"): COMMANDS.index("left")}


def draw_bev_augmentation(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A random ``aug_from_ego`` [4, 4] float64: mirror, scale, turn, then shift. Always takes the same number of draws.

    The turn and the scale are uniform, the shift is normal along each axis (CenterPoint, Yin et al., 2021).
    """
    turn, scale, flip_x, flip_y = rng.uniform(size=4)
    shift = rng.standard_normal(3)
    low, high = config.bev_scale
    return bev_matrix(
        math.radians(config.bev_rotation) * (2 * turn - 1),
        low + (high - low) * scale,
        bool(config.bev_flip and flip_x < 0.5),
        bool(config.bev_flip and flip_y < 0.5),
        (config.bev_shift * shift).tolist(),
    )


def bev_matrix(
    angle: float = 0.0,
    scale: float = 1.0,
    flip_x: bool = False,
    flip_y: bool = False,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """[4, 4] float64 that mirrors (``flip_x``: x becomes -x), scales all axes, turns about z [rad] and shifts [m]."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag([-scale if flip_x else scale, -scale if flip_y else scale, scale])
    matrix[:3, 3] = shift
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
        aug_from_ego: [4, 4], made of a rotation about z, mirrorings, one scale and a shift.

    Raises:
        ValueError: the sample has a map mask, or the matrix is of another kind.
    """
    matrix = _checked(aug_from_ego)
    if sample.map_mask is not None:
        raise ValueError("a sample with a map mask cannot be augmented: cut the mask with aug_from_ego (crop_map)")
    mirrored = _mirrors(matrix)
    return dataclasses.replace(
        sample,
        aug_from_ego=_compose(matrix, sample.aug_from_ego),
        cameras=sample.cameras and _move_cameras(sample.cameras, matrix),
        lidar=None if sample.lidar is None else _move_points(sample.lidar, matrix),
        radar=None if sample.radar is None else _move_radar(sample.radar, matrix),
        boxes=sample.boxes and _move_boxes(sample.boxes, matrix),
        future=sample.future and _move_trajectory(sample.future, matrix),
        motion=sample.motion and _move_motion(sample.motion, matrix),
        past=sample.past and _move_trajectory(sample.past, matrix),
        status=sample.status and _move_status(sample.status, matrix, mirrored),
        command=_MIRRORED.get(sample.command, sample.command) if mirrored else sample.command,
        history=tuple(transform_sample(before, matrix) for before in sample.history),
    )


def transform_batch(batch: Batch, aug_from_ego: np.ndarray | Tensor) -> Batch:
    """Every sample of a batch as it is in the frame ``aug``, as ``transform_sample`` has it; on the batch's device."""
    matrix = _checked(aug_from_ego).to(batch.command.device)
    if batch.map_mask is not None:
        raise ValueError("a batch with map masks cannot be augmented: cut the masks with aug_from_ego (crop_map)")
    mirrored = _mirrors(matrix)
    lidar, radar, boxes = batch.lidar, batch.radar, batch.boxes
    swap = torch.tensor([_MIRRORED.get(i, i) for i in range(-1, len(COMMANDS))], device=matrix.device)
    return dataclasses.replace(
        batch,
        aug_from_ego=_compose(matrix, batch.aug_from_ego),
        cameras=batch.cameras and _move_cameras(batch.cameras, matrix),
        lidar=lidar and dataclasses.replace(lidar, points=_move_points(lidar.points, matrix)),
        radar=radar and dataclasses.replace(radar, points=_move_radar(radar.points, matrix)),
        boxes=boxes and tuple(_move_boxes(of_sample, matrix) for of_sample in boxes),
        future=batch.future and _move_trajectory(batch.future, matrix),
        motion=batch.motion and tuple(_move_motion(of_sample, matrix) for of_sample in batch.motion),
        past=batch.past and _move_trajectory(batch.past, matrix),
        status=batch.status and _move_status(batch.status, matrix, mirrored),
        command=swap[batch.command + 1] if mirrored else batch.command,
        history=tuple(
            dataclasses.replace(past, batch=transform_batch(past.batch, matrix.cpu())) for past in batch.history
        ),
    )


def transform_boxes(boxes: Boxes, dst_from_src: np.ndarray | Tensor) -> Boxes:
    """Boxes under an augmentation or its inverse, on their device. ValueError for a matrix of another kind."""
    return _move_boxes(boxes, _checked(dst_from_src).to(boxes.center.device))


def transform_trajectory(path: Trajectory, dst_from_src: np.ndarray | Tensor) -> Trajectory:
    """A path under an augmentation or its inverse, on its device. ValueError for a matrix of another kind."""
    return _move_trajectory(path, _checked(dst_from_src).to(path.position.device))


def transform_forecast(forecast: Forecast, dst_from_src: np.ndarray | Tensor) -> Forecast:
    """Forecasts under an augmentation or its inverse, on their device. ValueError for a matrix of another kind."""
    matrix = _checked(dst_from_src).to(forecast.position.device)
    position, yaw = _place(forecast.position, matrix), _turn_yaw(forecast.yaw, matrix)
    return dataclasses.replace(forecast, position=position, yaw=yaw)


def _checked(aug_from_ego: np.ndarray | Tensor) -> Tensor:
    """[4, 4] float64 augmentation matrix, or ValueError."""
    matrix = torch.as_tensor(aug_from_ego, dtype=torch.float64)
    linear, scale = matrix[:3, :3], float(matrix[2, 2])
    rigid = torch.allclose(linear @ linear.T, scale**2 * torch.eye(3, dtype=linear.dtype), atol=1e-6)
    flat = not linear[2, :2].any() and not linear[:2, 2].any() and bool(matrix[:3, 3].isfinite().all())
    if scale <= 0 or not rigid or not flat:
        raise ValueError(
            f"aug_from_ego must turn about z, mirror in x or y, scale evenly and shift; found {matrix.tolist()}"
        )
    return matrix


def _mirrors(matrix: Tensor) -> bool:
    return bool(matrix[0, 0] * matrix[1, 1] < matrix[0, 1] * matrix[1, 0])


def _compose(matrix: Tensor, transforms: Tensor) -> Tensor:
    return (matrix @ transforms.double()).float()


def _place(points: Tensor, matrix: Tensor) -> Tensor:
    """Points [..., N] of as many axes as they have, moved. Written out to stay clear of reduced-precision products."""
    axes = range(points.shape[-1])
    rows = matrix.to(points.dtype)
    moved = [sum(rows[i, j] * points[..., j] for j in axes) + rows[i, 3] for i in axes]
    return torch.stack(moved, dim=-1)  # type: ignore[arg-type]


def _move_cameras(cameras: Cameras, matrix: Tensor) -> Cameras:
    return dataclasses.replace(cameras, ego_from_cam=_compose(matrix, cameras.ego_from_cam))


def _move_points(points: Tensor, matrix: Tensor) -> Tensor:
    moved = points.clone()
    moved[:, :3] = _place(points[:, :3], matrix)
    return moved


def _move_radar(returns: Tensor, matrix: Tensor) -> Tensor:
    moved = _move_points(returns, matrix)
    for start in map(RADAR_FIELDS.index, ("vx", "ray_x")):
        moved[:, start : start + 2] = _turn(returns[:, start : start + 2], matrix)
    return moved


def _turn(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors [..., 2] in the ground plane under the matrix without its translation."""
    return _place(vectors, torch.cat([matrix[:, :3], torch.zeros_like(matrix[:, 3:])], dim=1))


def _turn_yaw(yaw: Tensor, matrix: Tensor) -> Tensor:
    heading = _turn(torch.stack([yaw.cos(), yaw.sin()], dim=-1).double(), matrix)
    return torch.atan2(heading[..., 1], heading[..., 0]).to(yaw)


def _move_boxes(boxes: Boxes, matrix: Tensor) -> Boxes:
    return dataclasses.replace(
        boxes,
        center=_place(boxes.center, matrix),
        size=boxes.size * matrix[2, 2].to(boxes.size),
        yaw=_turn_yaw(boxes.yaw, matrix),
        velocity=_turn(boxes.velocity, matrix),
    )


def _move_trajectory(path: Trajectory, matrix: Tensor) -> Trajectory:
    """What is not known stays zero."""
    position = torch.where(path.mask[..., None], _place(path.position, matrix), path.position)
    yaw = torch.where(path.mask, _turn_yaw(path.yaw, matrix), path.yaw)
    return Trajectory(position=position, yaw=yaw, mask=path.mask)


def _move_motion(motion: Motion, matrix: Tensor) -> Motion:
    now, path = _move_trajectory(motion.now, matrix), _move_trajectory(motion.path, matrix)
    return dataclasses.replace(motion, now=now, path=path, size=motion.size * matrix[2, 2].to(motion.size))


def _move_status(status: EgoStatus, matrix: Tensor, mirrored: bool) -> EgoStatus:
    return EgoStatus(
        velocity=_turn(status.velocity, matrix),
        acceleration=_turn(status.acceleration, matrix),
        yaw_rate=-status.yaw_rate if mirrored else status.yaw_rate,
    )
