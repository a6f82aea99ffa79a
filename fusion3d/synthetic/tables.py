"""Records of the 13 nuScenes tables (schema: the devkit's ``docs/schema_nuscenes.md``), with deterministic tokens.

Sizes in records are width, length, height; rotations are quaternions (w, x, y, z); translations are global metres;
timestamps are microseconds. A token is the MD5 of what it names, so the same seed gives the same tokens anywhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from fusion3d.geometry import quaternion_from_yaw
from fusion3d.types import ATTRIBUTES, CAMERAS, RADARS

Record = dict[str, Any]

SHARED_TABLES = ("attribute", "category", "sensor", "visibility")  # the same in every synthetic data set
SCENE_TABLES = (
    "log", "map", "scene", "sample", "calibrated_sensor", "ego_pose", "sample_data", "instance", "sample_annotation",
)  # a part from every scene  # fmt: skip

# Names and order of nuScenes v1.0.
CATEGORIES = {
    "human.pedestrian.adult": "A grown person on foot.",
    "human.pedestrian.child": "A child on foot.",
    "human.pedestrian.wheelchair": "A wheelchair, with the person in it.",
    "human.pedestrian.stroller": "A stroller, with the child in it.",
    "human.pedestrian.personal_mobility": "A skateboard, scooter or the like, with its standing rider.",
    "human.pedestrian.police_officer": "A police officer on foot.",
    "human.pedestrian.construction_worker": "A construction worker on foot.",
    "animal": "An animal of any kind.",
    "vehicle.car": "A car for personal use, vans included.",
    "vehicle.motorcycle": "A motorcycle or motor scooter, with its rider.",
    "vehicle.bicycle": "A bicycle, with its rider.",
    "vehicle.bus.bendy": "One section of an articulated bus.",
    "vehicle.bus.rigid": "A bus without a joint.",
    "vehicle.truck": "A vehicle made to haul cargo.",
    "vehicle.construction": "A vehicle made for construction work.",
    "vehicle.emergency.ambulance": "An ambulance.",
    "vehicle.emergency.police": "A police vehicle.",
    "vehicle.trailer": "A trailer behind any vehicle.",
    "movable_object.barrier": "A temporary road barrier.",
    "movable_object.trafficcone": "A traffic cone.",
    "movable_object.pushable_pullable": "Something a person pushes or pulls, such as a bin or a cart.",
    "movable_object.debris": "Something lying on the road that is too large to drive over.",
    "static_object.bicycle_rack": "A rack for bicycles, with the bicycles in it.",
}
_ATTRIBUTE_TEXT = (
    "The vehicle moves.", "The vehicle stands and will go on.", "The vehicle stands for longer.",
    "Someone rides the cycle.", "Nobody rides the cycle.", "The person sits or lies.", "The person stands.",
    "The person moves.",
)  # fmt: skip
VISIBILITY_LEVELS = ("v0-40", "v40-60", "v60-80", "v80-100")


def token_of(*parts: object) -> str:
    """32 hexadecimal digits that name ``parts``."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def modality_of(channel: str) -> str:
    """camera, lidar or radar."""
    return "camera" if channel in CAMERAS else "radar" if channel in RADARS else "lidar"


def shared_tables() -> dict[str, list[Record]]:
    """The tables of ``SHARED_TABLES``."""
    attributes = zip(ATTRIBUTES, _ATTRIBUTE_TEXT, strict=True)
    return {
        "attribute": [{"token": token_of("attribute", n), "name": n, "description": text} for n, text in attributes],
        "category": [
            {"token": token_of("category", n), "name": n, "description": text} for n, text in CATEGORIES.items()
        ],
        "sensor": [
            {"token": token_of("sensor", c), "channel": c, "modality": modality_of(c)}
            for c in (*CAMERAS, "LIDAR_TOP", *RADARS)
        ],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": f"{level[1:].replace('-', ' to ')} % of it is visible"}
            for i, level in enumerate(VISIBILITY_LEVELS)
        ],
    }


def visibility_token(fraction: float) -> str:
    """Visibility level "1" to "4" of a visible fraction in [0, 1]."""
    return str(1 + int(np.searchsorted((0.4, 0.6, 0.8), fraction, side="right")))


def link(records: list[Record]) -> list[Record]:
    """``records``, which are one chain in order of time, with ``prev`` and ``next`` set."""
    tokens = ["", *(record["token"] for record in records), ""]
    for i, record in enumerate(records):
        record["prev"], record["next"] = tokens[i], tokens[i + 2]
    return records


def annotation(
    token: str, sample: str, instance: str, center: np.ndarray, size: np.ndarray, yaw: float, attribute: int,
) -> Record:  # fmt: skip
    """A ``sample_annotation`` whose counts and visibility are still to be found.

    Args:
        token: its own token.
        sample: sample token.
        instance: instance token.
        center: [3] gravity centre, global [m].
        size: [3] length, width, height [m].
        yaw: heading about z [rad].
        attribute: index in ``ATTRIBUTES``, -1 none.
    """
    length, width, height = size.tolist()
    return {
        "token": token,
        "sample_token": sample,
        "instance_token": instance,
        "visibility_token": "1",
        "attribute_tokens": [token_of("attribute", ATTRIBUTES[attribute])] if attribute >= 0 else [],
        "translation": center.tolist(),
        "size": [width, length, height],
        "rotation": quaternion_from_yaw(np.asarray(yaw)).tolist(),
        "prev": "",
        "next": "",
        "num_lidar_pts": 0,
        "num_radar_pts": 0,
    }


def pose(token: str, timestamp: int, position: np.ndarray, yaw: float) -> Record:
    """An ``ego_pose``: the vehicle at ``position`` [3] (global, m) with heading ``yaw`` [rad]."""
    rotation = quaternion_from_yaw(np.asarray(yaw)).tolist()
    return {"token": token, "timestamp": timestamp, "rotation": rotation, "translation": position.tolist()}


def count_points(points: np.ndarray, box: Record, footprint: bool = False) -> int:
    """How many points are inside an annotation, faces included and without margin.

    Args:
        points: [P, 3] float64, global [m].
        box: ``sample_annotation``.
        footprint: leave the height out of it (radar measures none).
    """
    w, x, y, z = box["rotation"]
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    width, length, height = box["size"]
    offset = points - np.asarray(box["translation"])
    forward = offset[:, 0] * np.cos(yaw) + offset[:, 1] * np.sin(yaw)
    left = offset[:, 1] * np.cos(yaw) - offset[:, 0] * np.sin(yaw)
    inside = (np.abs(forward) <= length / 2) & (np.abs(left) <= width / 2)
    if not footprint:
        inside &= np.abs(offset[:, 2]) <= height / 2
    return int(inside.sum())
