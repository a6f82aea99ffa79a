"""Rigid transforms, projection and yaw boxes. No learning, no files.

Convention: right-handed frames, quaternions are (w, x, y, z), matrices act on column vectors, yaw is counter-clockwise
about z. Functions take numpy arrays or torch tensors of any leading shape unless they say otherwise.
"""

from fusion3d.geometry.boxes import box_corners, corners_bev, turn, wrap_angle
from fusion3d.geometry.rigid import (
    apply,
    invert,
    quaternion_from_rotation,
    quaternion_from_yaw,
    rotate,
    rotation_from_quaternion,
    transform_from,
    yaw_from_quaternion,
    yaw_of,
)

__all__ = [
    "apply",
    "box_corners",
    "corners_bev",
    "invert",
    "quaternion_from_rotation",
    "quaternion_from_yaw",
    "rotate",
    "rotation_from_quaternion",
    "transform_from",
    "turn",
    "wrap_angle",
    "yaw_from_quaternion",
    "yaw_of",
]
