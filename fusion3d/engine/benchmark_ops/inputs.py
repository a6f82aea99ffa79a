"""Clouds to measure on: real ones where a data set is given, else scans of a synthetic scene; never zeros."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from fusion3d.data import Tables
from fusion3d.data.lidar import load_lidar
from fusion3d.errors import DataError
from fusion3d.geometry import invert
from fusion3d.synthetic.lidar import scan_lidar
from fusion3d.synthetic.rig import RIG
from fusion3d.synthetic.stage import ego_at, global_from_ego
from fusion3d.synthetic.world import build_scene

_SWEEP = 0.05  # [s] between turns of the LiDAR
_STEP = 0.4  # [m] that the ego moves between turns
_NOISE = 0.02  # [m] of a range
_SWEEPS = 10  # turns that are usually fed together

_root: Path | None = None


def use_data(root: str | Path | None) -> None:
    """Take clouds from this nuScenes data root from now on; None: from the synthetic scene."""
    global _root
    _root = None if root is None else Path(root)
    _cloud.cache_clear()


def described() -> str:
    """Where the clouds come from, in a few words."""
    return "synthetic LiDAR" if _root is None else f"LiDAR of {_root.name}"


def lidar_sweeps(num_points: int = 270_000) -> np.ndarray:
    """[num_points, 5] float32: x, y, z [m] in ego at the last turn, intensity, age [s]; as many turns as it takes.

    A data set with fewer turns than that has its last one repeated, each time as it would look from 0.4 m further
    back, with the noise of the ranges drawn anew.
    """
    return _cloud(num_points).copy()


@lru_cache(maxsize=2)
def _cloud(num_points: int) -> np.ndarray:
    return _synthetic(num_points) if _root is None else _recorded(_root, num_points)


def _recorded(root: Path, num_points: int) -> np.ndarray:
    """Of the keyframe that has most turns before it.

    Raises:
        DataError: no tables in the data root, or no keyframe with a LiDAR cloud.
    """
    versions = sorted(path.parent.name for path in root.glob("*/sample_data.json"))
    if not versions:
        raise DataError(f"{root}: no folder with tables (sample_data.json); expected a nuScenes data root")
    tables = Tables.open(root, versions[0])
    keys = [(sample, tables.key(sample, "LIDAR_TOP")) for sample in range(len(tables.sample_token))]
    found = [(len(tables.sweeps(key, _SWEEPS)), -sample) for sample, key in keys if key >= 0]
    cloud = load_lidar(tables, -max(found)[1], _SWEEPS) if found else None
    if cloud is None or not len(cloud):
        raise DataError(f"{root}: no keyframe has points of LIDAR_TOP; expected one at least")
    real = cloud.numpy()
    turn = real[real[:, 4] == real[:, 4].min()]
    random = np.random.default_rng(0)
    clouds, total, age = [real], len(real), real[:, 4].max()
    while total < num_points:
        age += _SWEEP
        older = turn.copy()
        older[:, :3] *= 1 + random.normal(0, _NOISE, (len(turn), 1)) / np.linalg.norm(
            turn[:, :3], axis=1, keepdims=True
        )
        older[:, 0] -= _STEP * age / _SWEEP
        older[:, 4] = age
        clouds.append(older.astype(np.float32))
        total += len(older)
    return np.concatenate(clouds)[:num_points]


def _synthetic(num_points: int) -> np.ndarray:
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
