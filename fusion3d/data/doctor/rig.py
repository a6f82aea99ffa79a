"""Checks of the rig by itself: where the sensors look, when they fire, and how the vehicle moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fusion3d.data.doctor.finding import Finding
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import rotation_from_quaternion, transform_from
from fusion3d.types import CAMERAS, RADARS

# Where a channel's name says that it looks, in ego [degrees from x, counter-clockwise].
_HEADING = {
    "CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_BACK_LEFT": 110, "CAM_BACK": 180, "CAM_BACK_RIGHT": -110,
    "CAM_FRONT_RIGHT": -55, "RADAR_FRONT": 0, "RADAR_FRONT_LEFT": 90, "RADAR_BACK_LEFT": 170,
    "RADAR_BACK_RIGHT": -170, "RADAR_FRONT_RIGHT": -90,
}  # fmt: skip
_HEADING_TOLERANCE = 30.0  # [degrees]
_LEVEL_TOLERANCE = 15.0  # [degrees] tilt of a sensor's up axis
_FASTEST = 70.0  # [m/s] that a vehicle can be


def channels_of(tables: Tables) -> list[str]:
    """The channels that have keyframes, cameras first, then LiDAR, then radars, then any others."""
    there = [name for name, column in tables.channels.items() if (tables.key_data[:, column] >= 0).any()]
    order = [*CAMERAS, "LIDAR_TOP", *RADARS]
    return sorted(there, key=lambda name: (order.index(name) if name in order else len(order), name))


def check_files(tables: Tables) -> list[Finding]:
    """Is every file that the tables name on the disk, and not empty?"""
    findings = []
    channel_of_data = tables.calibration_channel[tables.data_calibration]
    for channel in channels_of(tables):
        rows = np.flatnonzero(channel_of_data == tables.channels[channel])
        keys = int((tables.key_data[:, tables.channels[channel]] >= 0).sum())
        lost = [path for row in rows.tolist() if not _has_content(path := tables.path(row))]
        detail = f"{keys} keyframes, {len(rows) - keys} sweeps"
        if lost:
            detail += f"; {len(lost)} files missing or empty, the first {lost[0]}"
        findings.append(Finding("files", channel, not lost, detail))
    return findings


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def check_mounting(tables: Tables) -> list[Finding]:
    """Does each sensor stand upright and look where its name says? Are camera matrices plausible?"""
    findings = []
    for channel in channels_of(tables):
        rows = _calibrations(tables, channel)
        problems = [text for row in rows if (text := _mounting_problem(tables, channel, row))]
        detail = problems[0] if problems else f"{len(rows)} calibrations upright, looking where the name says"
        findings.append(Finding("mounting", channel, not problems, detail))
    return findings


def _calibrations(tables: Tables, channel: str) -> list[int]:
    """The calibrations that a channel's files really use."""
    used = np.unique(tables.data_calibration)
    return used[tables.calibration_channel[used] == tables.channels[channel]].tolist()


def _mounting_problem(tables: Tables, channel: str, row: int) -> str:
    quaternion, translation = tables.calibration_rotation[row], tables.calibration_translation[row]
    name = f"calibration {tables.calibration_token[row].decode()}"
    if not np.isfinite([*quaternion, *translation]).all():
        return f"{name} has numbers that are not finite"
    if abs(np.linalg.norm(quaternion) - 1) > 1e-3:
        return f"{name} has a quaternion of length {np.linalg.norm(quaternion):.3f}, expected 1"
    tilt, off = _orientation(channel, quaternion)
    if tilt > _LEVEL_TOLERANCE or off > _HEADING_TOLERANCE:
        text = f"{name} is tilted by {tilt:.0f} deg and looks {off:.0f} deg off what its name says"
        tilt, off = _orientation(channel, quaternion[[3, 0, 1, 2]])
        fits = tilt <= _LEVEL_TOLERANCE and off <= _HEADING_TOLERANCE
        return text + ("; as (x, y, z, w) it would fit: the quaternion's order is swapped" if fits else "")
    if np.abs(translation).max() > 10 or not -1 < translation[2] < 5:
        return f"{name} sits at {translation.round(2).tolist()} m from the ego origin"
    if channel in CAMERAS:
        return _lens_problem(tables, name, row)
    return ""


def _orientation(channel: str, quaternion: np.ndarray) -> tuple[float, float]:
    """Tilt of the up axis and deviation from the named heading [degrees]."""
    rotation = rotation_from_quaternion(quaternion)
    camera = channel.startswith("CAM")
    up, ahead = (-rotation[:, 1], rotation[:, 2]) if camera else (rotation[:, 2], rotation[:, 0])
    tilt = np.degrees(np.arccos(np.clip(up[2], -1, 1)))
    if channel not in _HEADING:
        return float(tilt), 0.0
    off = np.degrees(np.arctan2(ahead[1], ahead[0])) - _HEADING[channel]
    return float(tilt), float(abs((off + 180) % 360 - 180))


def _lens_problem(tables: Tables, name: str, row: int) -> str:
    matrix = tables.calibration_intrinsic[row]
    data = int(np.flatnonzero(tables.data_calibration == row)[0])
    rows, cols = tables.data_size[data].tolist()
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        return f"{name} has the camera matrix {matrix.tolist()}"
    view = 2 * np.degrees(np.arctan(cols / 2 / matrix[0, 0]))
    center = np.array([matrix[0, 2] / cols, matrix[1, 2] / rows])
    if not 20 < view < 150 or abs(matrix[0, 0] / matrix[1, 1] - 1) > 0.1 or np.abs(center - 0.5).max() > 0.2:
        return (
            f"{name}: the camera matrix gives a view of {view:.0f} deg, fx/fy {matrix[0, 0] / matrix[1, 1]:.2f}, "
            f"principal point at {center.round(2).tolist()} of {cols} x {rows} px; expected 20-150 deg, 1, the middle"
        )
    return ""


def check_times(tables: Tables) -> list[Finding]:
    """Do times ascend, fit the keyframe, and equal those of the ego poses?"""
    findings = []
    channel_of_data = tables.calibration_channel[tables.data_calibration]
    for channel in channels_of(tables):
        rows = np.flatnonzero(channel_of_data == tables.channels[channel])
        linked = rows[tables.data_prev[rows] >= 0]
        backwards = int((tables.data_time[linked] <= tables.data_time[tables.data_prev[linked]]).sum())
        keys = tables.key_data[:, tables.channels[channel]]
        samples = np.flatnonzero(keys >= 0)
        late = np.abs(tables.data_time[keys[samples]] - tables.sample_time[samples]) * 1e-6
        pose = np.abs(tables.data_time[rows] - tables.pose_time[tables.data_pose[rows]]) * 1e-6
        passed = backwards == 0 and late.max() < 0.15 and pose.max() < 0.005
        detail = (
            f"keyframes within {late.max() * 1e3:.0f} ms of their sample (limit 150), ego poses within "
            f"{pose.max() * 1e3:.1f} ms (limit 5), {backwards} steps back in time"
        )
        findings.append(Finding("time", channel, bool(passed), detail))
    return findings


def check_ego_poses(tables: Tables) -> list[Finding]:
    """Are all ego poses numbers, and do those of all sensors of a scene lie on one path?"""
    broken = _broken_poses(tables)
    if broken.any():
        rows = np.flatnonzero(broken[tables.data_pose])
        names = ", ".join(tables.path(int(row)).name for row in rows[:3])
        detail = f"{int(broken.sum())} poses are not finite, or have no unit quaternion; the first are those of {names}"
        return [Finding("ego poses", "numbers", False, detail)]
    channel_of_data = tables.calibration_channel[tables.data_calibration]
    worst: dict[str, list[float]] = {channel: [] for channel in channels_of(tables)}
    for rows in _rows_of_scenes(tables):
        for channel in worst:
            mine = channel_of_data[rows] == tables.channels[channel]
            if mine.any() and (~mine).sum() > 2:
                worst[channel].append(_off_path(tables, rows[mine], rows[~mine]))
    findings = []
    for channel, off in worst.items():
        detail = (
            f"poses {max(off):.2f} m off the path of the other sensors (limit 0.5)"
            if off
            else "no other sensor's poses"
        )
        findings.append(Finding("ego poses", channel, max(off) < 0.5 if off else None, detail))
    return findings


def check_ego_motion(tables: Tables) -> list[Finding]:
    """Does the vehicle drive as fast as vehicles do, and the way it heads?"""
    if _broken_poses(tables)[tables.sample_pose].any():
        return [Finding("ego motion", "speed", False, "a keyframe's pose is not finite: see ego poses")]
    driven = [_driving(tables, rows) for rows in _rows_of_scenes(tables)]
    speed, slips = max(top for top, _ in driven), [angle for _, angles in driven for angle in angles]
    slip = float(np.median(slips)) if slips else float("nan")
    detail = f"heading {slip:.1f} deg off the direction of travel (limit 10)" if slips else "the vehicle does not move"
    return [
        Finding("ego motion", "speed", speed < _FASTEST, f"up to {speed:.1f} m/s (limit {_FASTEST:.0f})"),
        Finding("ego motion", "heading", slip < 10 if slips else None, detail),
    ]


def _broken_poses(tables: Tables) -> np.ndarray:
    """[E] bool: poses that are not finite, or whose quaternion is not of length 1."""
    length = np.linalg.norm(tables.pose_rotation, axis=1)  # NaN is not below the limit
    return ~(np.isfinite(tables.pose_translation).all(1) & (np.abs(length - 1) < 1e-3))


def _rows_of_scenes(tables: Tables) -> Iterator[np.ndarray]:
    """The files of each scene, in order of time."""
    scene_of_data = tables.sample_scene[tables.data_sample]
    for scene in np.unique(scene_of_data):
        rows = np.flatnonzero(scene_of_data == scene)
        yield rows[np.argsort(tables.data_time[rows], kind="stable")]


def _off_path(tables: Tables, mine: np.ndarray, others: np.ndarray) -> float:
    """Median distance [m] of one sensor's ego positions from the others', interpolated in time."""
    time, path_time = tables.data_time[mine], tables.data_time[others]
    within = (time >= path_time[0]) & (time <= path_time[-1])
    if not within.any():
        return 0.0
    path, places = tables.pose_translation[tables.data_pose[others]], tables.pose_translation[tables.data_pose[mine]]
    expected = np.stack([np.interp(time[within], path_time, path[:, axis]) for axis in range(3)], axis=-1)
    return float(np.median(np.linalg.norm(places[within] - expected, axis=1)))


def _driving(tables: Tables, rows: np.ndarray) -> tuple[float, list[float]]:
    """Top speed [m/s] between samples, and angles [degrees] between heading and travel where it moves."""
    samples = np.unique(tables.data_sample[rows])
    samples = samples[np.argsort(tables.reference_time[samples], kind="stable")]
    poses = tables.sample_pose[samples]
    if len(samples) < 2:
        return 0.0, []
    seconds = np.maximum(np.diff(tables.pose_time[poses]) * 1e-6, 1e-3)
    step = np.diff(tables.pose_translation[poses], axis=0)
    speed = np.linalg.norm(step, axis=1) / seconds
    pose = transform_from(tables.pose_translation[poses], tables.pose_rotation[poses])
    ahead = pose[1:, :2, 0] + pose[:-1, :2, 0]
    moving = speed > 1.0
    cross = ahead[:, 0] * step[:, 1] - ahead[:, 1] * step[:, 0]
    angle = np.degrees(np.abs(np.arctan2(cross, (ahead * step[:, :2]).sum(1))))
    return float(speed.max()), angle[moving].tolist()
