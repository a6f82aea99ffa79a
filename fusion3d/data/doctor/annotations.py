"""Checks of boxes: do they move steadily, and the way they head?"""

from __future__ import annotations

import numpy as np

from fusion3d.data.doctor.finding import Finding
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import rotation_from_quaternion
from fusion3d.types import DETECTION_CLASSES

_VEHICLES = [DETECTION_CLASSES.index(name) for name in ("car", "truck", "bus", "motorcycle", "bicycle")]
_HARDEST = 40.0  # [m/s2] change of velocity that no road user has: 10 m off for one keyframe are 80
_JUMPS = 0.002  # share of the boxes that may jump: annotators err


def check_motion(tables: Tables) -> list[Finding]:
    """Does every instance move steadily from keyframe to keyframe, or do boxes jump (are they linked wrongly)?"""
    here = np.flatnonzero((tables.box_prev >= 0) & (tables.box_next >= 0))
    if len(here) < 20:
        return [Finding("box motion", "annotations", None, f"only {len(here)} boxes with one before and one after")]
    time = np.repeat(tables.sample_time, np.diff(tables.box_start)) * 1e-6
    before, after = tables.box_prev[here], tables.box_next[here]
    center, seconds = tables.box_center, np.maximum([time[here] - time[before], time[after] - time[here]], 1e-3)
    later, earlier = center[after] - center[here], center[here] - center[before]
    change = later / seconds[1][:, None] - earlier / seconds[0][:, None]
    force = np.linalg.norm(change[:, :2], axis=1) / seconds.mean(0)
    jumps, worst = int((force > _HARDEST).sum()), int(force.argmax())
    instance = bytes(tables.instance_token[tables.box_instance[here[worst]]]).decode()
    detail = (
        f"{jumps} of {len(here)} boxes jump (limit {_JUMPS:.1%}); the hardest change is {force[worst]:.1f} m/s2 "
        f"(limit {_HARDEST:g}), of instance {instance}"
    )
    return [Finding("box motion", "annotations", jumps <= _JUMPS * len(here), detail)]


def check_heading(tables: Tables) -> list[Finding]:
    """Do moving vehicles move the way they head?"""
    speed = np.linalg.norm(tables.box_velocity[:, :2], axis=1)
    chosen = np.isin(tables.box_class, _VEHICLES) & (speed > 2)
    if chosen.sum() < 10:
        return [Finding("box heading", "annotations", None, f"only {int(chosen.sum())} moving vehicles")]
    ahead = rotation_from_quaternion(tables.box_rotation[chosen])[:, :2, 0]
    velocity = tables.box_velocity[chosen, :2]
    cross = ahead[:, 0] * velocity[:, 1] - ahead[:, 1] * velocity[:, 0]
    angle = np.degrees(np.arctan2(np.abs(cross), (ahead * velocity).sum(1)))
    off = float(np.median(angle))
    detail = f"{off:.1f} deg off the direction of travel of {int(chosen.sum())} moving vehicles (limit 15)"
    if off >= 15:
        mirrored = np.degrees(np.arctan2(np.abs(-ahead[:, 0] * velocity[:, 1] - ahead[:, 1] * velocity[:, 0]),
                                         -(-ahead[:, 0] * velocity[:, 0] + ahead[:, 1] * velocity[:, 1])))  # fmt: skip
        if np.median(mirrored) < 15:
            detail += "; negated headings would fit"
        elif abs(off - 90) < 15:
            detail += "; a quarter turn would fit: length and width, or the quaternion's convention, are swapped"
        elif off > 165:
            detail += "; a half turn would fit: boxes look backwards"
    return [Finding("box heading", "annotations", off < 15, detail)]
