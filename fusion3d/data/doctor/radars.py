"""Checks of radars: Doppler against the ego motion, and against the boxes."""

from __future__ import annotations

import numpy as np
import torch

from fusion3d import ops
from fusion3d.data.doctor.finding import Finding
from fusion3d.data.doctor.rig import channels_of
from fusion3d.data.nuscenes import Tables
from fusion3d.data.radar import load_radars, read_pcd
from fusion3d.geometry import apply, invert, rotate, rotation_from_quaternion, transform_from, yaw_of
from fusion3d.types import RADARS

_TURNS = np.radians(np.arange(-175, 181, 5))


def check_doppler(tables: Tables, samples: list[int]) -> list[Finding]:
    """Is what the radar compensated the ego's own velocity, seen along the ray? If not, how is the radar turned?"""
    findings = []
    for channel in (c for c in channels_of(tables) if c in RADARS):
        measured, rays, velocities = [], [], []
        for sample in samples:
            row = tables.key(sample, channel)
            if row < 0 or (velocity := _sensor_velocity(tables, row)) is None or np.linalg.norm(velocity) < 2:
                continue
            cloud = read_pcd(tables.path(row), ("x", "y", "vx", "vy", "vx_comp", "vy_comp"))
            position = np.stack([cloud["x"], cloud["y"]], axis=-1).astype(np.float64)
            ray = position / np.maximum(np.linalg.norm(position, axis=1, keepdims=True), 1e-6)
            removed = np.stack([cloud["vx"] - cloud["vx_comp"], cloud["vy"] - cloud["vy_comp"]], axis=-1)
            measured.append((removed * ray).sum(1))
            rays.append(ray)
            velocities.append(np.broadcast_to(velocity[:2], ray.shape))
        if not measured or sum(map(len, measured)) < 20:
            findings.append(
                Finding("radar doppler", channel, None, "the vehicle hardly moves, or there are too few returns")
            )
            continue
        findings.append(_doppler_finding(channel, *map(np.concatenate, (measured, rays, velocities))))
    return findings


def _doppler_finding(channel: str, measured: np.ndarray, ray: np.ndarray, velocity: np.ndarray) -> Finding:
    def error(turn: float) -> float:
        cos, sin = np.cos(turn), np.sin(turn)
        turned = np.stack([cos * ray[:, 0] - sin * ray[:, 1], sin * ray[:, 0] + cos * ray[:, 1]], axis=-1)
        return float(np.median(np.abs(measured + (turned * velocity).sum(1))))

    off = error(0.0)
    passed = off < 0.5
    detail = f"ego motion in Doppler off by {off:.2f} m/s (limit 0.5)"
    if not passed:
        errors = [error(turn) for turn in _TURNS]
        best = int(np.argmin(errors))
        if errors[best] < 0.5 * off:
            detail += (
                f"; {errors[best]:.2f} with the radar turned by {np.degrees(_TURNS[best]):+.0f} deg: check its rotation"
            )
    return Finding("radar doppler", channel, passed, detail)


def _sensor_velocity(tables: Tables, row: int) -> np.ndarray | None:
    """[3] velocity of a sensor over ground in its own frame [m/s], from the same sensor's poses round ``row``."""
    before = int(tables.data_prev[row])
    nexts = np.flatnonzero(tables.data_prev == row)
    ends = [before if before >= 0 else row, int(nexts[0]) if len(nexts) else row]
    calibration = int(tables.data_calibration[row])
    ego_from_sensor = transform_from(
        tables.calibration_translation[calibration], tables.calibration_rotation[calibration]
    )
    poses = tables.data_pose[ends]
    global_from_sensor = transform_from(tables.pose_translation[poses], tables.pose_rotation[poses]) @ ego_from_sensor
    seconds = float(tables.data_time[ends[1]] - tables.data_time[ends[0]]) * 1e-6
    if not 0 < seconds < 2.5:
        return None
    pose = tables.data_pose[row]
    here = transform_from(tables.pose_translation[pose], tables.pose_rotation[pose]) @ ego_from_sensor
    return here[:3, :3].T @ ((global_from_sensor[1] - global_from_sensor[0])[:3, 3] / seconds)


def check_radar_in_boxes(tables: Tables, samples: list[int]) -> list[Finding]:
    """Do returns on moving boxes measure the boxes' velocity along the ray?"""
    differences, moving, explained = [], 0, 0
    for sample in samples:
        cloud = load_radars(tables, sample)
        rows = slice(*tables.box_start[sample : sample + 2].tolist())
        if cloud is None or not len(cloud) or rows.start == rows.stop:
            continue
        ego_from_global = invert(tables.global_from_ego(sample))
        speed = torch.linalg.vector_norm(cloud[:, 4:6], dim=1)
        chosen = cloud[(speed > 2) & (cloud[:, 7] == 0) & (torch.linalg.vector_norm(cloud[:, :2], dim=1) < 60)]
        rotation = ego_from_global[:3, :3] @ rotation_from_quaternion(tables.box_rotation[rows])
        center = apply(ego_from_global, tables.box_center[rows])
        boxes = np.column_stack([center, tables.box_size[rows], yaw_of(rotation)])
        boxes[:, 2], boxes[:, 5] = 0, 100  # a radar does not measure height
        box_of = ops.points_in_boxes(chosen, torch.from_numpy(boxes), margin=1.0).box
        velocity = torch.from_numpy(rotate(ego_from_global, tables.box_velocity[rows]))[:, :2].float()
        moving += len(chosen)
        explained += int((box_of >= 0).sum())
        for point in (box_of >= 0).nonzero().flatten().tolist():
            measured = chosen[point, 4:6]
            along = measured / torch.linalg.vector_norm(measured)
            difference = float(torch.linalg.vector_norm(measured) - velocity[box_of[point]] @ along)
            if np.isfinite(difference):
                differences.append(abs(difference))
    if len(differences) < 20:
        return [Finding("radar in boxes", "all radars", None, f"only {len(differences)} moving returns in boxes")]
    median = float(np.median(differences))
    detail = (
        f"Doppler of {len(differences)} returns off the boxes' velocity by {median:.2f} m/s (limit 1); "
        f"{explained / moving:.0%} of the moving returns are in boxes"
    )
    return [Finding("radar in boxes", "all radars", median < 1.0, detail)]
