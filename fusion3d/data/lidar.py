"""LiDAR clouds: one file, and the sweeps of a sample in its reference frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion3d.data.corruptions import CLEAN, Corruptor, Reading, placed
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
    tables: Tables,
    sample: int,
    num_sweeps: int = 1,
    min_distance: float = 1.0,
    guard: Guard = strict,
    corruptor: Corruptor = CLEAN,
) -> Tensor | None:
    """The sample's LiDAR points of the last ``num_sweeps`` clouds, each moved by the ego motion since.

    At a scene's start there are fewer clouds; none is repeated. Under a lenient guard a broken cloud of the
    past is left out, and the sensor is absent where the keyframe's own is broken.

    Returns:
        [P, 5] float32 LIDAR_FIELDS: x, y, z in the reference frame [m], intensity 0..1, seconds before the
        reference time. ``None`` where the sample has no key LiDAR.
    """
    if not corruptor.there(tables, sample, [REFERENCE_CHANNEL]):
        return None
    key = tables.key(sample, REFERENCE_CHANNEL)
    readings, clouds = [], []
    for reading in corruptor.readings(tables, sample, REFERENCE_CHANNEL, num_sweeps):
        cloud = guard(lambda reading=reading: _load_cloud(tables, reading, min_distance, corruptor))
        if cloud is None and reading.row == key:
            return None
        if cloud is not None:
            readings.append(reading)
            clouds.append(cloud)
    # One product a sweep moves the points, scales the intensity and, by the column of ones, sets the time.
    out_from_file = np.zeros((len(readings), 5, 5), dtype=np.float32)
    transforms = placed(tables, sample, readings)
    out_from_file[:, :3, :3] = transforms[:, :3, :3]
    out_from_file[:, :3, 4] = transforms[:, :3, 3]
    out_from_file[:, 3, 3] = 1 / 255
    out_from_file[:, 4, 4] = [tables.lag(sample, reading.row) for reading in readings]
    out = np.empty((sum(map(len, clouds)), 5), dtype=np.float32)
    end = 0
    for cloud, matrix in zip(clouds, out_from_file, strict=True):
        start, end = end, end + len(cloud)
        np.matmul(cloud, matrix.T, out=out[start:end])
    return torch.from_numpy(out)


def _load_cloud(tables: Tables, reading: Reading, min_distance: float, corruptor: Corruptor) -> np.ndarray:
    """[P, 5] points of one file that are far enough, with ones in place of the ring."""
    tables.check(reading.row)
    points = corruptor.points(read_lidar(tables.path(reading.content)), tables, reading)
    keep = far_enough(points[:, 0], points[:, 1], min_distance)
    points = points.view(f"V{_BYTES}")[keep[:, None]].view(np.float32).reshape(-1, 5)  # whole rows: ten times faster
    points[:, 4] = 1
    return points
