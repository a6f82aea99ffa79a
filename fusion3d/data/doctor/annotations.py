"""Checks of boxes: does their velocity agree with where they go, and their heading with how they move?"""

from __future__ import annotations

import numpy as np

from fusion3d.data.doctor.finding import Finding
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import rotation_from_quaternion
from fusion3d.types import DETECTION_CLASSES

_VEHICLES = [DETECTION_CLASSES.index(name) for name in ("car", "truck", "bus", "motorcycle", "bicycle")]


def check_velocity(tables: Tables) -> list[Finding]:
    """Is the velocity of a box its displacement to the next keyframe, divided by the time between?"""
    here = np.flatnonzero(tables.box_next >= 0)
    box_time = np.repeat(tables.sample_time, np.diff(tables.box_start)) * 1e-6
    there = tables.box_next[here]
    seconds = np.maximum(box_time[there] - box_time[here], 1e-3)
    step = (tables.box_center[there] - tables.box_center[here])[:, :2] / seconds[:, None]
    mean = (tables.box_velocity[here] + tables.box_velocity[there])[:, :2] / 2
    moving = (np.linalg.norm(step, axis=1) > 1) & np.isfinite(mean).all(1)
    if moving.sum() < 20:
        return [Finding("box velocity", "annotations", None, f"only {int(moving.sum())} moving boxes")]
    off = float(np.median(np.linalg.norm(mean - step, axis=1)[moving]))
    top = float(np.linalg.norm(step[moving], axis=1).max())
    detail = f"{off:.2f} m/s off the displacement of {int(moving.sum())} moving boxes (limit 0.5)"
    detail += f", top speed {top:.1f} m/s (limit 70)"
    return [Finding("box velocity", "annotations", off < 0.5 and top < 70, detail)]


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
