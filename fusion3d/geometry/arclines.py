"""Curves of arc, line or arc, and arc, all of one radius (Dubins, 1957): what the nuScenes map expansion makes
centrelines of.

An arcline is a record of its ``arcline_path_3``: ``start_pose`` and ``end_pose`` (x, y, yaw), ``shape`` (for each of
three segments L left, S straight or R right), ``radius`` [m] and ``segment_length`` ([3], m). P places on one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX_LENGTH = 2000.0  # [m] of a curve: a longer one is a damaged record
MAX_RADIUS = 999.999  # [m] what the expansion has where a curve is straight
_TURN = {"L": 1.0, "S": 0.0, "R": -1.0}
_SHAPES = ("LSL", "LSR", "RSL", "RSR", "LRL", "RLR")


def length_of(arcline: Mapping[str, Any]) -> float:
    """Metres from start to end.

    Raises:
        ValueError: a length or the radius is not what a curve has, or the shape is unknown.
    """
    lengths, radius, shape = arcline["segment_length"], arcline["radius"], arcline["shape"]
    total = float(sum(lengths))
    sound = min(lengths, default=-1) > -1e-6 and total <= MAX_LENGTH and radius > 0  # rounding may leave a hair below 0
    if shape not in _SHAPES or len(lengths) != 3 or not sound:
        raise ValueError(
            f"an arcline of shape {shape!r}, segments of {lengths} m and radius {radius} m; expected a shape of "
            f"{', '.join(_SHAPES)}, three lengths of 0 or more, {MAX_LENGTH:.0f} m in all at most, and a radius above 0"
        )
    return total


def poses_on(arcline: Mapping[str, Any], at: np.ndarray) -> np.ndarray:
    """[P, 3] x, y and yaw in [-pi, pi) at [P] distances from the start [m]; ends are held."""
    x, y, yaw = (np.full(len(at), value, dtype=np.float64) for value in arcline["start_pose"])
    rest = np.maximum(at, 0.0)
    for letter, length in zip(arcline["shape"], arcline["segment_length"], strict=True):
        step = np.minimum(rest, length)
        half = _TURN[letter] / arcline["radius"] * step / 2  # [rad] between the heading and that of the chord
        chord = step * np.sinc(half / np.pi)
        x, y, yaw = x + chord * np.cos(yaw + half), y + chord * np.sin(yaw + half), yaw + 2 * half
        rest = rest - step
    return np.stack([x, y, (yaw + np.pi) % (2 * np.pi) - np.pi], axis=-1)


def discretise(arcline: Mapping[str, Any], step: float) -> np.ndarray:
    """[P, 3] poses from start to end, evenly apart, ``step`` metres at most.

    Raises:
        ValueError: see ``length_of``.
    """
    length = length_of(arcline)
    return poses_on(arcline, np.linspace(0.0, length, max(math.ceil(length / step), 1) + 1))


def connect(start: np.ndarray, end: np.ndarray, radius: float) -> dict[str, Any]:
    """The shortest arcline of arc, line and arc that leads from one pose [3] to another."""
    found = []
    for shape in _SHAPES[:4]:
        first, last = _TURN[shape[0]], _TURN[shape[2]]
        across = (first - last) * radius
        away = _center(end, last, radius) - _center(start, first, radius)
        straight = float(away @ away) - across**2
        if straight < 0:
            continue  # the two circles overlap
        straight = math.sqrt(straight)
        heading = math.atan2(away[1], away[0]) + math.atan2(across, straight)
        arcs = [_angle(first * (heading - start[2])), _angle(last * (end[2] - heading))]
        found.append(([radius * arcs[0], straight, radius * arcs[1]], shape))
    lengths, shape = min(found, key=lambda of: sum(of[0]))
    poses = [[float(value) for value in pose] for pose in (start, end)]
    return {
        "start_pose": poses[0], "end_pose": poses[1], "shape": shape, "radius": radius, "segment_length": lengths
    }  # fmt: skip


def _center(pose: np.ndarray, side: float, radius: float) -> np.ndarray:
    """[2] of the circle on a side: 1 left, -1 right."""
    return pose[:2] + side * radius * np.array([-math.sin(pose[2]), math.cos(pose[2])])


def _angle(turn: float) -> float:
    """In [0, 2 pi); what rounding has made a hair less than a whole turn is none."""
    turn %= 2 * math.pi
    return 0.0 if turn > 2 * math.pi - 1e-9 else turn
