"""The vehicle on its way, in torch: its rectangle along a path, ten poses a second, and what its passengers bear.

``metrics.planning`` scores finished plans with the same definitions in numpy; planning heads learn by these. Poses are
[..., 3] x, y, yaw of the rear axle [m, rad], rectangles [..., 5] x, y, length, width, yaw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d.geometry.boxes import wrap_angle
from fusion3d.types import EGO_CENTER, EGO_SIZE, TIME_STEP

SWEEP = 5  # poses to a step of 0.5 s: 10 Hz
LEAST_PROGRESS = 5.0  # [m] where neither the plan nor the human gets farther, progress is 1
# Bounds of comfort (nuPlan): acceleration, jerk along and in all [m/s^2, m/s^3], turning [rad/s, rad/s^2].
LONGITUDINAL = (-4.05, 2.40)
BOUNDS = {"lateral": 4.89, "jerk": 8.37, "longitudinal_jerk": 4.13, "yaw_rate": 0.95, "yaw_acceleration": 1.93}


def overlap_depth(first: Tensor, second: Tensor) -> Tensor:
    """How far rectangles [..., 5] that broadcast must be moved to come apart [m]; 0 or less where they are.

    The least overlap over the four axes of the two (separating axes).
    """
    across, along = second[..., 0] - first[..., 0], second[..., 1] - first[..., 1]
    turn = second[..., 4] - first[..., 4]
    cos, sin = turn.cos().abs(), turn.sin().abs()
    axes = []
    for box, other in ((first, second), (second, first)):
        c, s = box[..., 4].cos(), box[..., 4].sin()
        length, width = other[..., 2], other[..., 3]
        axes.append((box[..., 2] + length * cos + width * sin) / 2 - (across * c + along * s).abs())
        axes.append((box[..., 3] + length * sin + width * cos) / 2 - (along * c - across * s).abs())
    return torch.minimum(torch.minimum(axes[0], axes[1]), torch.minimum(axes[2], axes[3]))


def ego_points(pose: Tensor, part: Tensor) -> Tensor:
    """[..., 3] poses to [..., P, 2] places on the vehicle, at parts [P, 2] of its length and width from its middle."""
    c, s = pose[..., 2, None].cos(), pose[..., 2, None].sin()
    x, y = EGO_CENTER + EGO_SIZE[0] * part[:, 0], EGO_SIZE[1] * part[:, 1]
    return torch.stack([pose[..., 0, None] + c * x - s * y, pose[..., 1, None] + s * x + c * y], dim=-1)


def ego_rectangle(pose: Tensor) -> Tensor:
    """[..., 3] poses to the rectangle of the vehicle, [..., 5]."""
    center = ego_points(pose, pose.new_zeros(1, 2))[..., 0, :]
    size = pose.new_tensor(EGO_SIZE[:2]).expand_as(center)
    return torch.cat([center, size, pose[..., 2:]], dim=-1)


def sweep(start: Tensor, end: Tensor) -> Tensor:
    """Ten poses a second from ``start``, which is not included, to ``end``, half a second later; turning the short way.

    Args:
        start, end: [..., T, 3].

    Returns:
        [..., 5 T, 3].
    """
    move = end - start
    move = torch.cat([move[..., :2], wrap_angle(move[..., 2:])], dim=-1)
    part = torch.arange(1, SWEEP + 1, device=end.device)[:, None] / SWEEP
    return (start[..., None, :] + part * move[..., None, :]).flatten(-3, -2)


def sweep_path(path: Tensor) -> Tensor:
    """[..., T, 3] planned poses to [..., 5 T, 3], from the vehicle of now, which is at the origin."""
    return sweep(torch.cat([torch.zeros_like(path[..., :1, :]), path[..., :-1, :]], dim=-2), path)


def comfortable(path: Tensor, velocity: Tensor, yaw_rate: Tensor) -> Tensor:
    """Do accelerations, jerks and turning along paths stay within the bounds?

    Velocities are differences of positions; accelerations lie between two of them, the first after that of now.

    Args:
        path: [..., T, 3].
        velocity: [..., 2] over the last half second [m/s].
        yaw_rate: [...] likewise [rad/s].

    Returns:
        [...] bool.
    """
    pose = torch.cat([torch.zeros_like(path[..., :1, :]), path], dim=-2)
    step = pose.diff(dim=-2) / TIME_STEP
    velocity = torch.cat([velocity[..., None, :].expand_as(step[..., :1, :2]), step[..., :2]], dim=-2)
    turned = wrap_angle(pose[..., 2].diff(dim=-1)) / TIME_STEP
    rate = torch.cat([yaw_rate[..., None].expand_as(turned[..., :1]), turned], dim=-1)
    acceleration = velocity.diff(dim=-2) / TIME_STEP
    c, s = pose[..., :-1, 2].cos(), pose[..., :-1, 2].sin()
    along = acceleration[..., 0] * c + acceleration[..., 1] * s
    sizes = {
        "lateral": (acceleration[..., 1] * c - acceleration[..., 0] * s).abs(),
        "jerk": acceleration.diff(dim=-2).norm(dim=-1) / TIME_STEP,
        "longitudinal_jerk": along.diff(dim=-1).abs() / TIME_STEP,
        "yaw_rate": rate.abs(),
        "yaw_acceleration": rate.diff(dim=-1).abs() / TIME_STEP,
    }
    fine = ((along > LONGITUDINAL[0]) & (along < LONGITUDINAL[1])).all(-1)
    for name, size in sizes.items():
        fine = fine & (size < BOUNDS[name]).all(-1)
    return fine


def progress(path: Tensor, driven: Tensor) -> Tensor:
    """How far paths get along the driven one, relative to the larger of that and the whole of it; 1 where both are
    ``LEAST_PROGRESS`` or less.

    Args:
        path, driven: [..., T, 3] that broadcast.

    Returns:
        [...] in [0, 1].
    """
    start = torch.cat([torch.zeros_like(driven[..., :1, :2]), driven[..., :-1, :2]], dim=-2)
    move = driven[..., :2] - start
    length = move.norm(dim=-1)
    moved = length > 1e-6
    # Sums over earlier pieces as products with a triangle: cumsum has no deterministic kernel on CUDA.
    steps = length.shape[-1]
    before = torch.ones(steps, steps, device=length.device).tril(-1)
    begin = (before * length[..., None, :]).sum(-1)
    end = path[..., -1, None, :2]
    unit = move / length.clamp(min=1e-9)[..., None]
    along = ((end - start) * unit).sum(-1)
    # The last piece that was really driven goes on for ever: a plan may get farther than the human.
    number = torch.arange(steps, device=length.device)
    last = torch.where(moved, number, -1).amax(-1, keepdim=True)
    limit = torch.where(number == last, torch.inf, length)
    on = torch.minimum(along.clamp(min=0), limit)
    away = (start + on[..., None] * unit - end).norm(dim=-1)
    nearest = torch.where(moved, away, torch.inf).argmin(-1, keepdim=True)
    got = (begin + on).gather(-1, nearest)[..., 0]
    yaw = driven[..., -1, 2]  # where the human stood, its heading is the way
    still = (path[..., -1, 0] * yaw.cos() + path[..., -1, 1] * yaw.sin()).clamp(min=0)
    got = torch.where(last[..., 0] < 0, still, got)
    most = torch.maximum(got, length.sum(-1))
    return torch.where(most > LEAST_PROGRESS, got / most.clamp(min=1e-9), 1.0)
