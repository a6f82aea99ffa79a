"""What evaluation compares with, straight from the tables: full precision, no training filter."""

from __future__ import annotations

from typing import Any

from fusion3d.data.nuscenes import Tables
from fusion3d.metrics.detection import Truth
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

BICYCLE_RACK = "static_object.bicycle_rack"


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
