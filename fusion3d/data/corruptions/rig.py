"""What the rig gets wrong: where a sensor is, and which moment it shows.

Such an error is in what is believed, as in a vehicle: the truth stays, and so does the ego frame. Spatial and temporal
misalignment with severities are MultiCorrupt's (Beemelmanns et al., 2024); the curves are our own.
"""

from __future__ import annotations

import math

import numpy as np

from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import invert, transform_from

ODDS = (0.2, 0.4, 0.6)  # MultiCorrupt's probabilities of a failure, by severity


def turned(degrees: float, rng: np.random.Generator) -> np.ndarray:
    """[4, 4] float64: a rotation by an angle about an axis through the sensor, uniform on the sphere."""
    axis, angle = _direction(rng), math.radians(degrees)
    x, y, z = axis * math.sin(angle / 2)
    return transform_from(np.zeros(3), np.array([math.cos(angle / 2), x, y, z]))


def shifted(metres: float, rng: np.random.Generator) -> np.ndarray:
    """[4, 4] float64: a shift by a distance, in a direction uniform on the sphere."""
    matrix = np.eye(4)
    matrix[:3, 3] = metres * _direction(rng)
    return matrix


def misaligned(level: int) -> np.ndarray:
    """[4, 4] float64: MultiCorrupt's spatial misalignment: 1, 2, 3 degrees about each axis, clockwise; 2 m along x."""
    cos, sin = math.cos(math.radians(level + 1)), math.sin(math.radians(level + 1))
    about_x = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])
    about_y = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    about_z = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_x @ about_y @ about_z
    matrix[0, 3] = 2.0
    return matrix


def earlier(tables: Tables, data: int, seconds: float) -> tuple[int, np.ndarray | None]:
    """What a sensor shows whose clock is behind: the file of its own nearest to an earlier moment.

    What is between that file's moment and the one that is wanted is made up for by the motion of the ego: the world
    that stands still comes out exactly as it would have been seen, what moves as it was in the file. So data sets
    without sweeps (as of a synthetic set's cameras) have a curve too. Before a chain's first file is nothing: that
    file is shown.

    Args:
        tables: of the data set.
        data: row of the file that is believed to be read.
        seconds: how much earlier.

    Returns:
        The row of the file, and [4, 4] float64 from it to where it is believed in the frame of ``data``'s sensor,
        None where the file is of that very moment.

    Raises:
        DataError: a pose or calibration on the way is broken.
    """
    wanted = int(tables.data_time[data]) - round(seconds * 1e6)
    newer = older = data
    while tables.data_time[older] > wanted and (before := int(tables.data_prev[older])) >= 0:
        newer, older = older, before
    times = tables.data_time[[older, newer]].astype(np.float64)
    if wanted <= times[0]:
        return older, None
    part = (wanted - times[0]) / (times[1] - times[0])  # of the way from the older to the newer
    content = newer if part >= 0.5 else older
    if wanted == times[1]:
        return content, None
    for row in (data, older, newer):
        tables.check(row)
    calibration = tables.data_calibration[[data, content]]
    ego_from_sensor = transform_from(
        tables.calibration_translation[calibration], tables.calibration_rotation[calibration]
    )
    global_from_wanted = _pose_between(tables, older, newer, part) @ ego_from_sensor[0]
    pose = tables.data_pose[content]
    global_from_content = transform_from(tables.pose_translation[pose], tables.pose_rotation[pose]) @ ego_from_sensor[1]
    return content, invert(global_from_wanted) @ global_from_content


def _pose_between(tables: Tables, older: int, newer: int, part: float) -> np.ndarray:
    """[4, 4] global_from_ego between two files of a sensor: the rotation turns evenly but for a hair."""
    poses = tables.data_pose[[older, newer]]
    first, second = tables.pose_rotation[poses]
    if first @ second < 0:  # the same rotation, written the other way
        second = -second
    start, end = tables.pose_translation[poses]
    return transform_from(start + part * (end - start), first + part * (second - first))


def _direction(rng: np.random.Generator) -> np.ndarray:
    """[3] of length 1, uniform on the sphere."""
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)
