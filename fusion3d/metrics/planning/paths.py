"""Paths of the ego: their heading, their place on the LiDAR, ten poses a second, and how two of them differ.

N samples, T steps; a path is [N, T, 3] x, y, yaw of the rear axle in the ego frame of now, which is at the origin with
heading 0 [m, rad].
"""

from __future__ import annotations

import numpy as np

from fusion3d.geometry.driving import SWEEP

SURE_MOTION = 0.5  # [m] displacement over two steps below which it says nothing about the heading


def path_heading(position: np.ndarray) -> np.ndarray:
    """Heading of the ego along a path that starts at the origin, heading along x.

    Central difference over the neighbouring steps (backward difference at the last); a displacement under
    ``SURE_MOTION`` keeps the heading before it; one that points more than 90 degrees away is driven backwards.

    Args:
        position: [N, T, 2] rear axle.

    Returns:
        [N, T] float64 [rad].
    """
    path = np.concatenate([np.zeros_like(position[:, :1]), position], axis=1).astype(np.float64)
    following = np.concatenate([path[:, 2:], path[:, -1:]], axis=1)
    heading = np.zeros(position.shape[:2])
    now = np.zeros(len(position))
    for step in range(position.shape[1]):
        move = following[:, step] - path[:, step]
        along = move[:, 0] * np.cos(now) + move[:, 1] * np.sin(now)
        move = np.where(along[:, None] < 0, -move, move)
        now = np.where(np.linalg.norm(move, axis=-1) < SURE_MOTION, now, np.arctan2(move[:, 1], move[:, 0]))
        heading[:, step] = now
    return heading


def towed_heading(position: np.ndarray, lever: np.ndarray) -> np.ndarray:
    """Heading of the vehicle along the path of a place ahead of its rear axle, which starts heading along x.

    In a bend such a place does not move where the vehicle heads. The rear axle does, so it follows like a trailer on a
    drawbar (a tractrix), ``SWEEP`` times a step, along a smooth curve through the path. Steps under half of
    ``SURE_MOTION`` and driving backwards keep the heading before them.

    Args:
        position: [N, T, 2] of the place, from where it is now, in ego.
        lever: [N] how far it is ahead of the rear axle [m].

    Returns:
        [N, T] float64 [rad].
    """
    from scipy.interpolate import CubicSpline  # slow to import

    path = np.concatenate([np.zeros_like(position[:, :1]), position], axis=1).astype(np.float64)
    steps = position.shape[1]
    move = np.diff(CubicSpline(np.arange(steps + 1), path, axis=1)(np.arange(SWEEP * steps + 1) / SWEEP), axis=1)
    way, far = np.arctan2(move[..., 1], move[..., 0]), np.linalg.norm(move, axis=-1)
    sure = np.repeat(np.linalg.norm(np.diff(path, axis=1), axis=-1) >= SURE_MOTION / 2, SWEEP, axis=1)
    heading, now = np.zeros(way.shape), np.zeros(len(path))
    for instant in range(way.shape[1]):
        aside = wrap(way[:, instant] - now)
        left = 2 * np.arctan(np.tan(aside / 2) * np.exp(-far[:, instant] / np.maximum(lever, 1e-3)))
        now = np.where(sure[:, instant] & (np.cos(aside) > 0), wrap(way[:, instant] - left), now)
        heading[:, instant] = now
    return heading[:, SWEEP - 1 :: SWEEP]


def with_heading(position: np.ndarray) -> np.ndarray:
    """[N, T, 2] positions to [N, T, 3] poses, headed as ``path_heading`` says."""
    position = np.asarray(position, dtype=np.float64)
    return np.concatenate([position, path_heading(position)[..., None]], axis=-1)


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles brought into [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def to_lidar(path: np.ndarray, mount: np.ndarray) -> np.ndarray:
    """A path of the rear axle as one of the LiDAR in the LiDAR's frame of now, as most published planners have it.

    Args:
        path: [N, T, 3] in ego.
        mount: [N, 3] x, y, yaw of the LiDAR in ego.

    Returns:
        [N, T, 3] x, y (to the right and forward, where the mount is nuScenes') and yaw of the *vehicle*.
    """
    x, y, turn = (mount[:, None, i] for i in range(3))
    c, s = np.cos(path[..., 2]), np.sin(path[..., 2])
    east, north = path[..., 0] + c * x - s * y - x, path[..., 1] + s * x + c * y - y
    c, s = np.cos(turn), np.sin(turn)
    return np.stack([c * east + s * north, c * north - s * east, path[..., 2] - turn], axis=-1)


def from_lidar(path: np.ndarray, mount: np.ndarray) -> np.ndarray:
    """The inverse of ``to_lidar``."""
    x, y, turn = (mount[:, None, i] for i in range(3))
    c, s = np.cos(turn), np.sin(turn)
    east, north = c * path[..., 0] - s * path[..., 1] + x, s * path[..., 0] + c * path[..., 1] + y
    yaw = path[..., 2] + turn
    c, s = np.cos(yaw), np.sin(yaw)
    return np.stack([east - (c * x - s * y), north - (s * x + c * y), yaw], axis=-1)


def sweep(path: np.ndarray) -> np.ndarray:
    """[N, T, 3] poses at the steps to [N, 5 T, 3], ten a second: straight between two, turning the shorter way."""
    first = np.concatenate([np.zeros_like(path[:, :1]), path[:, :-1]], axis=1)
    move = path - first
    move[..., 2] = wrap(move[..., 2])
    part = np.arange(1, SWEEP + 1)[:, None] / SWEEP
    return (first[:, :, None] + part * move[:, :, None]).reshape(len(path), -1, 3)


def at_times(path: np.ndarray, time: np.ndarray, count: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Poses at other times: straight between two, turning the shorter way; beyond the ends as in the piece there.

    Args:
        path: [N, S, 3].
        time: [N, S] ascending [s].
        count: [N] how many poses there are, 2 at least; those after are not looked at.
        wanted: [N, W] [s].

    Returns:
        [N, W, 3].
    """
    later = np.where(np.arange(path.shape[1]) < count[:, None], time, np.inf)[:, 1:]
    piece = np.minimum((later[:, None] <= wanted[..., None]).sum(axis=-1), count[:, None] - 2)
    rows = np.arange(len(path))[:, None]
    begin, move = path[rows, piece], path[rows, piece + 1] - path[rows, piece]
    move[..., 2] = wrap(move[..., 2])
    part = (wanted - time[rows, piece]) / (time[rows, piece + 1] - time[rows, piece])
    found = begin + part[..., None] * move
    found[..., 2] = wrap(found[..., 2])
    return found


def split_error(plan: np.ndarray, driven: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance of a plan from the driven path, along it and to its left.

    Args:
        plan, driven: [N, T, 3].

    Returns:
        [N, T] longitudinal and lateral error [m], positive ahead and to the left of where the human was.
    """
    away = plan[..., :2] - driven[..., :2]
    c, s = np.cos(driven[..., 2]), np.sin(driven[..., 2])
    return away[..., 0] * c + away[..., 1] * s, away[..., 1] * c - away[..., 0] * s
