"""What every planner must beat: plans that look at nothing but the last half second. N samples, T steps, K anchors."""

from __future__ import annotations

import numpy as np

from fusion3d.metrics.planning.drives import Drives, nominal_time
from fusion3d.metrics.planning.paths import wrap


def stationary(drives: Drives, steps: int) -> np.ndarray:
    """[N, T, 3] standing where it is."""
    return np.zeros((len(drives), steps, 3))


def constant_velocity(drives: Drives, steps: int) -> np.ndarray:
    """[N, T, 3] straight on as over the last keyframe interval; standing where there was none."""
    velocity = np.nan_to_num(drives.velocity)
    place = velocity[:, None] * nominal_time(steps)[:, None]
    return np.concatenate([place, np.zeros((*place.shape[:2], 1))], axis=-1)


def constant_turn(drives: Drives, steps: int) -> np.ndarray:
    """[N, T, 3] on along the circle of the last keyframe interval, at its speed and yaw rate.

    The speed is that along the arc whose chord was driven, the heading now that of now; what the chord had across the
    circle (a car slips little) is left out.
    """
    there = drives.past_known[:, 0]
    turned = np.where(there, -wrap(drives.past[:, 0, 2]), 0.0)
    seconds = np.where(there, drives.past_time[:, 0], 1.0)
    back = drives.past[:, 0]
    # The chord from then to now points half of the turn before the heading of now.
    chord = -(back[:, 0] * np.cos(turned / 2) - back[:, 1] * np.sin(turned / 2))
    arc = np.where(there, chord, 0.0) / np.sinc(turned / (2 * np.pi))
    time = nominal_time(steps)
    angle = (turned / seconds)[:, None] * time
    far = (arc / seconds)[:, None] * time
    straight = far * np.sinc(angle / (2 * np.pi))  # the chord of the arc ahead, at half of its angle
    place = np.stack([straight * np.cos(angle / 2), straight * np.sin(angle / 2)], axis=-1)
    return np.concatenate([place, wrap(angle)[..., None]], axis=-1)


def nearest_anchor(anchors: np.ndarray, drives: Drives) -> np.ndarray:
    """[N, T, 3] the anchor that is nearest to what was driven: how good choosing among them can get. No planner can.

    Args:
        anchors: [K, T, 3] paths in ego.
        drives: N samples; unknown steps are not looked at.
    """
    steps = anchors.shape[1]
    away = np.linalg.norm(drives.path[:, None, :steps, :2] - anchors[None, ..., :2], axis=-1)
    return anchors[np.where(drives.path_known[:, None, :steps], away, 0).sum(axis=-1).argmin(axis=1)]


def make_anchors(paths: np.ndarray, count: int, rounds: int = 20) -> np.ndarray:
    """[K, T, 3] typical paths, by k-means that starts from paths far apart: the same for the same paths.

    Args:
        paths: [M, T, 3] driven paths with nothing unknown, of the training split.
        count: K; of fewer different paths there are as many anchors.
        rounds: of k-means.

    Raises:
        ValueError: there is no path.
    """
    if not len(paths):
        raise ValueError("no driven path with a whole known future to make anchors of; take more scenes")
    flat = paths[..., :2].reshape(len(paths), -1)
    chosen = [int(np.linalg.norm(flat - flat.mean(axis=0), axis=1).argmin())]
    away = np.linalg.norm(flat - flat[chosen[0]], axis=1)
    while len(chosen) < min(count, len(flat)) and away.max() > 0:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(flat - flat[chosen[-1]], axis=1))
    centers, number = flat[chosen], np.arange(len(chosen))
    owner = _owners(flat, centers)
    for _ in range(rounds):
        centers = np.stack([flat[owner == k].mean(axis=0) for k in number])
        owner = _owners(flat, centers)
    yaw = np.stack([np.arctan2(*[f(paths[owner == k, :, 2]).mean(axis=0) for f in (np.sin, np.cos)]) for k in number])
    return np.concatenate([centers.reshape(len(centers), -1, 2), yaw[..., None]], axis=-1)


def _owners(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """[M] row of the nearest centre; one that is nearest to none gets the point that is farthest from its own."""
    owner = _nearest(points, centers)
    for empty in np.setdiff1d(np.arange(len(centers)), owner):
        shared = np.bincount(owner, minlength=len(centers))[owner] > 1
        away = np.linalg.norm(points - centers[owner], axis=1)
        owner[np.where(shared, away, -1).argmax()] = empty
    return owner


def _nearest(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """[M] row of the nearest centre, without the [M, K, ...] of all differences."""
    return ((centers**2).sum(axis=1) - 2 * points @ centers.T).argmin(axis=1)
