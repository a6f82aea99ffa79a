"""LiDAR clouds: one file, and the sweeps of a sample in its reference frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion3d.data.guard import Guard, strict
from fusion3d.data.nuscenes import Tables
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.errors import DataError

_BYTES = 20  # of a point: x, y, z, intensity, ring as float32


def read_lidar(path: Path) -> np.ndarray:
    """A nuScenes ``.pcd.bin`` file: [P, 5] float32 x, y, z [m] in the sensor frame, intensity 0..255, ring.

    Raises:
        DataError: the file is missing or its size is no multiple of 20 bytes (truncated).
    """
    try:
        size = path.stat().st_size
        values = np.fromfile(path, dtype=np.float32)
    except OSError as error:
        raise DataError(f"cannot read the LiDAR cloud {path}: {error.strerror}; copy or download it again") from error
    if size % _BYTES:
        raise DataError(f"LiDAR cloud {path} has {size} bytes, no multiple of {_BYTES}: truncated; download it again")
    return values.reshape(-1, 5)


def far_enough(x: np.ndarray, y: np.ndarray, distance: float) -> np.ndarray:
    """Which points lie outside of the square |x|, |y| < distance round their own sensor (the devkit's rule)."""
    return (np.abs(x) >= distance) | (np.abs(y) >= distance)


def load_lidar(
    tables: Tables, sample: int, num_sweeps: int = 1, min_distance: float = 1.0, guard: Guard = strict
) -> Tensor | None:
    """The sample's LiDAR points of the last ``num_sweeps`` clouds, each moved by the ego motion since.

    At a scene's start there are fewer clouds; none is repeated. Under a lenient guard a broken cloud of the
    past is left out, and the sensor is absent where the keyframe's own is broken.

    Returns:
        [P, 5] float32 LIDAR_FIELDS: x, y, z in the reference frame [m], intensity 0..1, seconds before the
        reference time. ``None`` where the sample has no key LiDAR.
    """
    key = tables.key(sample, REFERENCE_CHANNEL)
    if key < 0:
        return None
    rows = tables.sweeps(key, num_sweeps)
    transforms = tables.reference_from_sensor(sample, rows).astype(np.float32)
    clouds = []
    for row, transform in zip(rows, transforms, strict=True):
        cloud = guard(lambda row=row, transform=transform: _load_cloud(tables, sample, row, transform, min_distance))
        if cloud is None and row == key:
            return None
        if cloud is not None:
            clouds.append(cloud)
    return torch.from_numpy(np.concatenate(clouds))


def _load_cloud(tables: Tables, sample: int, row: int, transform: np.ndarray, min_distance: float) -> np.ndarray:
    tables.check(row)
    points = read_lidar(tables.path(row))
    points = points[far_enough(points[:, 0], points[:, 1], min_distance)]
    points[:, :3] = points[:, :3] @ transform[:3, :3].T + transform[:3, 3]
    points[:, 3] *= np.float32(1 / 255)
    points[:, 4] = tables.lag(sample, row)
    return points
