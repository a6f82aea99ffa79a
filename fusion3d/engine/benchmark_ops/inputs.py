"""Clouds to measure on: real ones where a data set is given, else scans of a synthetic scene; never zeros."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fusion3d.geometry import invert
from fusion3d.synthetic.lidar import scan_lidar
from fusion3d.synthetic.rig import RIG
from fusion3d.synthetic.stage import ego_at, global_from_ego
from fusion3d.synthetic.world import build_scene

_SWEEP = 0.05  # [s] between turns of the LiDAR


@lru_cache(maxsize=1)
def lidar_sweeps(num_points: int = 270_000) -> np.ndarray:
    """[num_points, 5] float32: x, y, z [m] in ego at the last turn, intensity, age [s]; as many turns as it takes."""
    scene = build_scene(0, 0, 2.0)
    clouds: list[np.ndarray] = []
    now, total = 1.0, 0
    ego_from_lidar = RIG["LIDAR_TOP"].ego_from_sensor
    ego_from_global = invert(global_from_ego(ego_at(scene, now)))
    while total < num_points:
        age = len(clouds) * _SWEEP
        points = scan_lidar(scene, now - age, len(clouds)).points
        pose = ego_from_global @ global_from_ego(ego_at(scene, now - age)) @ ego_from_lidar
        xyz = points[:, :3] @ pose[:3, :3].T + pose[:3, 3]
        clouds.append(np.column_stack([xyz, points[:, 3], np.full(len(points), age)]).astype(np.float32))
        total += len(points)
    return np.concatenate(clouds)[:num_points]
