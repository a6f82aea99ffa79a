"""What evaluation compares with, straight from the tables: full precision, no training filter."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import apply, invert, rotation_from_quaternion, yaw_of
from fusion3d.metrics.detection import Truth
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

BICYCLE_RACK = "static_object.bicycle_rack"
OBSTACLES = ("vehicle.", "human.")  # prefixes of the categories that a plan must not hit: all that move by themselves


def category_names(tables: Tables) -> list[str]:
    """The category names by row."""
    return [name.decode() for name in tables.category_name.tolist()]


def detection_truth(tables: Tables, token: str) -> Truth:
    """The annotations of a sample as the devkit's evaluation reads them."""
    names = category_names(tables)
    sample = tables.row_of(token)
    rows = range(tables.box_start[sample], tables.box_start[sample + 1])
    return Truth(
        boxes=[_record(tables, row, token) for row in rows if tables.box_class[row] >= 0],
        ego=tuple(tables.global_from_ego(sample)[:3, 3].tolist()),
        bicycle_racks=[_placed(tables, row) for row in rows if names[tables.box_category[row]] == BICYCLE_RACK],
    )


def obstacles(tables: Tables, token: str, num_steps: int) -> list[np.ndarray]:
    """The rectangles that the ego must not overlap at the following keyframes, in the ego frame of now.

    Args:
        tables: of the data set.
        token: of the sample that is now.
        num_steps: keyframes to look ahead.

    Returns:
        For each step, [K, 5] float64 x, y, length, width, yaw; none after the end of the scene.
    """
    names = category_names(tables)
    counts = np.array([name.startswith(OBSTACLES) for name in names], dtype=bool)
    sample = tables.row_of(token)
    ego_from_global = invert(tables.global_from_ego(sample))
    found = []
    for _ in range(num_steps):
        sample = tables.sample_next[sample] if sample >= 0 else -1
        if sample < 0:
            found.append(np.zeros((0, 5)))
            continue
        rows = np.arange(tables.box_start[sample], tables.box_start[sample + 1])
        rows = rows[counts[tables.box_category[rows]]]
        center = apply(ego_from_global, tables.box_center[rows])
        yaw = yaw_of(ego_from_global[:3, :3] @ rotation_from_quaternion(tables.box_rotation[rows]))
        found.append(np.concatenate([center[:, :2], tables.box_size[rows, :2], yaw[:, None]], axis=1))
    return found


def _placed(tables: Tables, row: int) -> dict[str, Any]:
    return {
        "translation": tables.box_center[row].tolist(),
        "size": tables.box_size[row, [1, 0, 2]].tolist(),
        "rotation": tables.box_rotation[row].tolist(),
    }


def _record(tables: Tables, row: int, token: str) -> dict[str, Any]:
    attribute = int(tables.box_attribute[row])
    return _placed(tables, row) | {
        "sample_token": token,
        "velocity": tables.box_velocity[row, :2].tolist(),
        "num_pts": int(tables.box_points[row].sum()),
        "detection_name": DETECTION_CLASSES[tables.box_class[row]],
        "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
    }
