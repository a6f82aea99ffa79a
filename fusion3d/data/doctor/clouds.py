"""Checks of LiDAR clouds: against the ground, against the boxes, and against their own past."""

from __future__ import annotations

import numpy as np
import torch

from fusion3d import ops
from fusion3d.data.doctor.finding import Finding
from fusion3d.data.lidar import load_lidar
from fusion3d.data.nuscenes import Tables
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.geometry import apply, invert, rotate, rotation_from_quaternion, yaw_of

_ENOUGH_BOXES = 20
_SHARES = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)  # of the ego motion, by which sweeps are tried to fit
_AGREE = 0.9  # share of boxes whose points must be as many as annotated


def _with_cloud(tables: Tables, samples: list[int]) -> list[int]:
    return [sample for sample in samples if tables.key(sample, REFERENCE_CHANNEL) >= 0]


def _cloud(tables: Tables, sample: int, sweeps: int = 1, min_distance: float = 0.0) -> torch.Tensor:
    points = load_lidar(tables, sample, sweeps, min_distance)
    assert points is not None  # the callers ask only for samples with a key cloud
    return points


def check_ground(tables: Tables, samples: list[int]) -> list[Finding]:
    """Is the ground near the vehicle at z = 0 and level? (Height and tilt of the LiDAR.)"""
    heights, tilts = [], []
    for sample in _with_cloud(tables, samples):
        points = _cloud(tables, sample, min_distance=2.0)[:, :3].numpy().astype(np.float64)
        near = points[(np.hypot(points[:, 0], points[:, 1]) < 15) & (points[:, 2] < 1.0)]
        if len(near) < 200:
            continue
        counts, edges = np.histogram(near[:, 2], bins=np.arange(-5, 1.01, 0.1))
        level = edges[counts.argmax()] + 0.05
        floor = near[np.abs(near[:, 2] - level) < 0.4]
        slope, _, _, _ = np.linalg.lstsq(np.c_[floor[:, :2], np.ones(len(floor))], floor[:, 2], rcond=None)
        heights.append(level)
        tilts.append(np.degrees(np.arctan(np.hypot(slope[0], slope[1]))))
    if not heights:
        return [Finding("ground", REFERENCE_CHANNEL, None, "no cloud with ground near the vehicle")]
    height, tilt = float(np.median(heights)), float(np.median(tilts))
    detail = f"at z = {height:+.2f} m (limit 0.3), tilted by {tilt:.1f} deg (limit 3)"
    return [Finding("ground", REFERENCE_CHANNEL, abs(height) < 0.3 and tilt < 3, detail)]


def check_points_in_boxes(tables: Tables, samples: list[int]) -> list[Finding]:
    """Do boxes hold as many LiDAR points as their annotation says? If not, what change would make them?"""
    subject = "LIDAR_TOP in boxes"
    cases = [_boxes_of(tables, sample) for sample in _with_cloud(tables, samples)]
    annotated = sum(int((case["expected"] >= 5).sum()) for case in cases)
    if annotated < _ENOUGH_BOXES:
        return [
            Finding("boxes", subject, None, f"only {annotated} boxes with 5 points or more in the samples looked at")
        ]
    share = _agreement(cases, lambda case: case)
    detail = f"{share:.0%} of {annotated} boxes hold their annotated number of points (limit {_AGREE:.0%})"
    if share < _AGREE:
        guesses = {text: _agreement(cases, change) for text, change in _SUSPECTS.items()}
        text, best = max(guesses.items(), key=lambda item: item[1])
        detail += f"; with {text} it would be {best:.0%}" if best > share + 0.2 else "; no simple change explains it"
    return [Finding("boxes", subject, share >= _AGREE, detail)]


def _boxes_of(tables: Tables, sample: int) -> dict[str, np.ndarray]:
    """Key cloud and boxes of a sample, in the reference frame, and the LiDAR there."""
    rows = slice(*tables.box_start[sample : sample + 2].tolist())
    ego_from_global = invert(tables.global_from_ego(sample))
    rotation = ego_from_global[:3, :3] @ rotation_from_quaternion(tables.box_rotation[rows])
    return {
        "points": _cloud(tables, sample)[:, :3].numpy(),
        "center": apply(ego_from_global, tables.box_center[rows]),
        "size": tables.box_size[rows],
        "yaw": yaw_of(rotation),
        "turn": yaw_of(ego_from_global),  # from a yaw in global to one in the reference frame
        "expected": tables.box_points[rows, 0],
        "lidar": tables.reference_from_sensor(sample, [tables.key(sample, REFERENCE_CHANNEL)])[0],
    }


def _rows(case: dict[str, np.ndarray]) -> torch.Tensor:
    """[K, 7] of a case's boxes, as operations take them."""
    return torch.from_numpy(np.column_stack([case[key] for key in ("center", "size", "yaw")]))


def _agreement(cases: list[dict[str, np.ndarray]], change) -> float:
    """Share of the boxes with 5 annotated points or more whose counted points agree to 10 % (or 2)."""
    good = total = 0
    for case in cases:
        case = change(case)
        chosen = case["expected"] >= 5
        counted = ops.points_in_boxes(torch.from_numpy(case["points"]), _rows(case)).count.numpy()[chosen]
        expected = case["expected"][chosen]
        good += int((np.abs(counted - expected) <= np.maximum(2, 0.1 * expected)).sum())
        total += int(chosen.sum())
    return good / max(total, 1)


def _mirror_sensor(axis: int):
    """The cloud with one axis of the LiDAR's own frame mirrored."""

    def change(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sign = np.ones(3)
        sign[axis] = -1
        own = apply(invert(case["lidar"]), case["points"].astype(np.float64)) * sign
        return case | {"points": apply(case["lidar"], own)}

    return change


_SUSPECTS = {
    "the LiDAR's x axis mirrored": _mirror_sensor(0),
    "the LiDAR's y axis mirrored": _mirror_sensor(1),
    "the LiDAR's z axis mirrored": _mirror_sensor(2),
    "length and width swapped": lambda case: case | {"size": case["size"][:, [1, 0, 2]]},
    "the boxes' headings negated": lambda case: case | {"yaw": 2 * case["turn"] - case["yaw"]},
    "centres taken as the middle of the boxes' bottoms": lambda case: (
        case | {"center": case["center"] + case["size"] * np.array([0, 0, 0.5])}
    ),
}


def check_sweeps(tables: Tables, samples: list[int]) -> list[Finding]:
    """Do past sweeps fit the present one best when they are moved by just the vehicle's own motion?"""
    distances, travelled = [], []
    for sample in _with_cloud(tables, samples):
        rows = tables.sweeps(tables.key(sample, REFERENCE_CHANNEL), 10)
        now, then = (tables.pose_translation[tables.data_pose[row]] for row in (rows[0], rows[-1]))
        if np.linalg.norm(now - then) < 1.0:
            continue
        motion = rotate(invert(tables.global_from_ego(sample)), (now - then)[None])[0]
        found = _sweep_distances(_standing(tables, sample, len(rows)), motion)
        if found is not None:
            distances.append(found)
            travelled.append(float(np.linalg.norm(motion)))
    if not distances:
        return [Finding("sweeps", REFERENCE_CHANNEL, None, "no sample with past sweeps, motion and standing structure")]
    mean = np.mean(distances, axis=0)
    here, best = mean[_SHARES.index(1.0)], int(mean.argmin())
    passed = bool(here <= 1.02 * mean[best])
    detail = f"standing things {here:.2f} m apart after {np.median(travelled):.1f} m of driving"
    if not passed:
        detail += f", but {mean[best]:.2f} m with {_SHARES[best]:g} times the ego motion: check poses and times"
    return [Finding("sweeps", REFERENCE_CHANNEL, passed, detail)]


def _standing(tables: Tables, sample: int, sweeps: int) -> torch.Tensor:
    """The points of all sweeps that are above ground, near, and not on annotated objects."""
    cloud = _cloud(tables, sample, sweeps, min_distance=2.0)
    reach = torch.linalg.vector_norm(cloud[:, :2], dim=1)
    cloud = cloud[(reach > 4) & (reach < 30) & (cloud[:, 2] > 0.3)]  # flat ground would fit anywhere
    return cloud[ops.points_in_boxes(cloud, _rows(_boxes_of(tables, sample)), margin=1.0).box < 0]


def _sweep_distances(cloud: torch.Tensor, motion: np.ndarray) -> list[float] | None:
    """Median distance [m] of the oldest sweep's points from the newest's, for each share of the ego motion."""
    from scipy.spatial import KDTree

    now, past = (cloud[cloud[:, 4] == time, :3].numpy() for time in (cloud[:, 4].amin(), cloud[:, 4].amax()))
    if len(now) < 200 or len(past) < 200:
        return None
    tree = KDTree(now)
    return [float(np.median(tree.query(past + (share - 1) * motion)[0])) for share in _SHARES]
