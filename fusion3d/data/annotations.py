"""Ground truth of a sample in its reference frame: boxes of the ten classes, and how the ego went on."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from fusion3d.data.can_bus import UNKNOWN, measured_status, route_of
from fusion3d.data.commands import command_of, command_on
from fusion3d.data.guard import Guard, strict
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import apply, invert, rotate, rotation_from_quaternion, yaw_of
from fusion3d.types import TIME_STEP, Boxes, EgoStatus, Motion, Trajectory

_STEP_RANGE = (0.5 * TIME_STEP, 1.5 * TIME_STEP)  # [s] what two consecutive keyframes may be apart


def load_boxes(tables: Tables, sample: int, min_points: int = 0) -> Boxes:
    """The sample's boxes of the ten detection classes, in ego, in the table's order.

    Args:
        tables: the data set.
        sample: sample row.
        min_points: boxes with fewer LiDAR + radar points are left out (for training).
    """
    rows = _rows(tables, sample)
    rows = rows[_counts(tables, rows, min_points)]
    ego_from_global = invert(tables.global_from_ego(sample))
    center, yaw = _places(tables, rows, ego_from_global)
    return Boxes.of(
        center=_tensor(center),
        size=_tensor(tables.box_size[rows]),
        yaw=_tensor(yaw),
        velocity=_tensor(rotate(ego_from_global, tables.box_velocity[rows])[:, :2]),
        label=_tensor(tables.box_class[rows]),
        attribute=_tensor(tables.box_attribute[rows]),
        visibility=_tensor(tables.box_visibility[rows]),
        num_points=_tensor(tables.box_points[rows]),
        instance=tuple(token.decode() for token in tables.instance_token[tables.box_instance[rows]].tolist()),
    )


def load_motion(tables: Tables, sample: int, steps: int, min_points: int = 0) -> Motion:
    """How everything annotated around a sample goes on, whatever its category.

    Things are followed by their instance through the following keyframes, as far as ``load_ego`` follows the ego: the
    scene's end, or a gap of time, ends what is known; a keyframe that does not annotate a thing is a gap in its path.

    Args:
        tables: the data set.
        sample: sample row.
        steps: keyframes to follow.
        min_points: that of ``load_boxes``, whose boxes come first.
    """
    now = _rows(tables, sample)
    counts = _counts(tables, now, min_points)
    ahead = [_rows(tables, row) for row in chain(tables, sample, tables.sample_next, steps)]
    rows = np.concatenate([now[counts], now[~counts], *ahead])
    step = np.repeat(np.arange(-1, len(ahead)), [len(now), *map(len, ahead)])
    _, first, thing = np.unique(tables.box_instance[rows], return_index=True, return_inverse=True)
    order = np.argsort(first)  # of the things, as they are first met
    place = np.argsort(order)[thing.reshape(-1)]
    center, yaw = _places(tables, rows, invert(tables.global_from_ego(sample)))
    position, heading = np.zeros((len(first), steps, 2)), np.zeros((len(first), steps))
    mask = np.zeros((len(first), steps), dtype=bool)
    later = step >= 0
    at = place[later], step[later]
    position[at], heading[at], mask[at] = center[later, :2], yaw[later], True
    # Things are the boxes of now, but where a table has an instance twice in a sample: then both are the same thing.
    each = np.concatenate([place[: len(now)], np.arange(place[: len(now)].max(initial=-1) + 1, len(first))])
    met = np.concatenate([np.arange(len(now)), first[order][each[len(now) :]]])  # of ``rows``: where each is met first
    here = ~later[met]
    place, turn = np.where(here[:, None], center[met, :2], 0), np.where(here, yaw[met], 0)
    start = Trajectory(_tensor(place), _tensor(turn), torch.from_numpy(here))
    path = Trajectory(_tensor(position[each]), _tensor(heading[each]), torch.from_numpy(mask[each]))
    return Motion(start, path, _tensor(tables.box_size[rows[met]]), _tensor(tables.box_class[rows[met]]))


def _rows(tables: Tables, sample: int) -> np.ndarray:
    return np.arange(tables.box_start[sample], tables.box_start[sample + 1])


def _counts(tables: Tables, rows: np.ndarray, min_points: int) -> np.ndarray:
    """Which boxes are of the ten classes and have as many points."""
    return (tables.box_class[rows] >= 0) & (tables.box_points[rows].sum(axis=1) >= min_points)


def _places(tables: Tables, rows: np.ndarray, ego_from_global: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[len, 3] gravity centres and [len] yaw of boxes in an ego frame."""
    turned = ego_from_global[:3, :3] @ rotation_from_quaternion(tables.box_rotation[rows])
    return apply(ego_from_global, tables.box_center[rows]), yaw_of(turned)


def load_ego(
    tables: Tables,
    sample: int,
    steps: int,
    command: Literal["route", "gt_endpoint", "none"] = "gt_endpoint",
    status: Literal["poses", "can_bus"] = "poses",
    guard: Guard = strict,
) -> tuple[Trajectory, Trajectory, EgoStatus, int]:
    """The ego's future, past, status and command at a sample.

    Positions are the reference poses of the following (previous) keyframes, as nuScenes planners take them:
    keyframes are 0.40 to 0.60 s apart, nothing is interpolated. A gap of more than 0.75 s (or less than 0.25
    s) ends what is known, as the scene's end does. Status and a command by the route know nothing of what follows.

    Args:
        tables: the data set.
        sample: sample row.
        steps: number of future and past positions.
        command, status: where they come from, as in ``DataConfig``.
        guard: what happens when a file of the CAN bus is broken.

    Returns:
        Future [steps] and past [steps] (from -TIME_STEP backwards) in ego, the status (NaN where it is not known), and
        the index in COMMANDS; -1 where it is not known.

    Raises:
        DataError: a file of the CAN bus cannot be read.
    """
    global_from_ego = tables.global_from_ego(sample)
    ego_from_global = invert(global_from_ego)
    future = _trajectory(tables, chain(tables, sample, tables.sample_next, steps), ego_from_global, steps)
    past = _trajectory(tables, chain(tables, sample, tables.sample_prev, steps), ego_from_global, steps)
    if status == "can_bus":
        now = guard(lambda: measured_status(tables, sample)) or UNKNOWN
    else:
        now = _status(tables, sample, ego_from_global)
    if command == "gt_endpoint":
        return future, past, now, command_of(future)
    route = guard(lambda: route_of(tables, sample)) if command == "route" else None
    return future, past, now, -1 if route is None else command_on(route, global_from_ego)


def chain(tables: Tables, sample: int, link: np.ndarray, count: int) -> list[int]:
    """Rows of the keyframes after one along ``link``, ``sample_next`` or ``sample_prev``, as far as each is about
    TIME_STEP from the one before.
    """
    rows: list[int] = []
    here = sample
    while len(rows) < count and (following := int(link[here])) >= 0:
        apart = abs(int(tables.reference_time[following]) - int(tables.reference_time[here])) * 1e-6
        if not _STEP_RANGE[0] <= apart <= _STEP_RANGE[1]:
            break
        rows.append(following)
        here = following
    return rows


def _poses(tables: Tables, rows: list[int], ego_from_global: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[len, 2] positions and [len] yaw of keyframes' ego frames in another ego frame."""
    if not rows:
        return np.zeros((0, 2)), np.zeros(0)
    poses = ego_from_global @ np.stack([tables.global_from_ego(row) for row in rows])
    return poses[:, :2, 3], yaw_of(poses)


def _trajectory(tables: Tables, rows: list[int], ego_from_global: np.ndarray, steps: int) -> Trajectory:
    position, yaw, mask = np.zeros((steps, 2)), np.zeros(steps), np.arange(steps) < len(rows)
    position[: len(rows)], yaw[: len(rows)] = _poses(tables, rows, ego_from_global)
    return Trajectory(position=_tensor(position), yaw=_tensor(yaw), mask=torch.from_numpy(mask))


def _status(tables: Tables, sample: int, ego_from_global: np.ndarray) -> EgoStatus:
    """Finite differences over the last one (velocity, yaw rate) and two (acceleration) keyframe intervals."""
    rows = [sample, *chain(tables, sample, tables.sample_prev, 2)]
    position, yaw = _poses(tables, rows, ego_from_global)
    seconds = -np.diff(tables.pose_time[tables.sample_pose[rows]]) * 1e-6
    unknown = np.full(2, np.nan)
    velocity = (position[:-1] - position[1:]) / np.maximum(seconds, 1e-3)[:, None]  # newest first
    turn = (yaw[:-1] - yaw[1:] + np.pi) % (2 * np.pi) - np.pi
    return EgoStatus(
        velocity=_tensor(velocity[0] if len(velocity) else unknown),
        acceleration=_tensor((velocity[0] - velocity[1]) / seconds[:2].mean() if len(velocity) > 1 else unknown),
        yaw_rate=_tensor(np.asarray(turn[0] / seconds[0] if len(turn) else np.nan)),
    )


def _tensor(values: np.ndarray) -> torch.Tensor:
    values = np.asarray(values)
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))
