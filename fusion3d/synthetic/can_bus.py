"""The CAN bus of a synthetic drive, as files of the nuScenes CAN bus expansion (its README in the devkit).

``can_bus/<scene>_pose.json``: 50 messages a second with what the vehicle measures: ``utime`` [us], ``pos`` and
``orientation`` (w, x, y, z) in global, and in the vehicle's frame ``vel`` [m/s], ``accel`` [m/s^2] and
``rotation_rate`` [rad/s]: differences to the simulation step before, so that nothing tells of what comes.

``can_bus/<scene>_route.json``: [x, y] along the lanes that the vehicle is to take, laid down before it drives: it says
nothing of where it stops or how far it gets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion3d.geometry import quaternion_from_yaw
from fusion3d.synthetic.scene import SIM_STEP, Scene

RATE = 50  # [Hz]
GRAVITY = 9.81  # [m/s^2] the accelerometer feels it


def pose_messages(scene: Scene, start: int, corner: np.ndarray) -> list[dict[str, Any]]:
    """What the vehicle measures, in order of time.

    Args:
        scene: the drive.
        start: [us] timestamp of t = 0.
        corner: [2] of the map in the scene's frame [m].
    """
    time = np.arange(2 * SIM_STEP, scene.duration + 1e-9, 1 / RATE)
    (position, yaw), (before, yaw_before), (first, _) = (scene.ego.at(time - lag * SIM_STEP) for lag in (0, 1, 2))
    speed, speed_before = (
        np.linalg.norm(move, axis=1) / SIM_STEP for move in (position - before, before - first)
    )  # fmt: skip
    rate, zero = (yaw - yaw_before) / SIM_STEP, np.zeros(len(time))
    columns = {
        "pos": position - [*corner, 0.0],
        "orientation": quaternion_from_yaw(yaw),
        "vel": np.stack([speed, zero, zero], axis=1),
        "accel": np.stack([(speed - speed_before) / SIM_STEP, speed * rate, zero + GRAVITY], axis=1),
        "rotation_rate": np.stack([zero, zero, rate], axis=1),
    }
    rows = zip(*(np.round(column, 6).tolist() for column in columns.values()), strict=True)
    stamps = (start + np.round(1e6 * time).astype(np.int64)).tolist()
    return [{"utime": at} | dict(zip(columns, row, strict=True)) for at, row in zip(stamps, rows, strict=True)]


def route_points(scene: Scene, corner: np.ndarray) -> list[list[float]]:
    """[x, y] along the way that the vehicle is to take."""
    return np.round(scene.route - corner, 3).tolist()
