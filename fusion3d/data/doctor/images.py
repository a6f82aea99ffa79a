"""Checks of cameras: do edges in depth, seen by the LiDAR, lie on edges in the image?"""

from __future__ import annotations

import numpy as np

from fusion3d.data.doctor.finding import Finding
from fusion3d.data.doctor.rig import channels_of
from fusion3d.data.images import open_image
from fusion3d.data.lidar import read_lidar
from fusion3d.data.nuscenes import Tables
from fusion3d.data.tables import REFERENCE_CHANNEL
from fusion3d.geometry import apply, invert
from fusion3d.types import CAMERAS

_WIDTH = 800  # [px] to which larger images are brought: a pixel is then less than a tenth of a degree
_YAWS = (0, -8, -5, -3, -2, 2, 3, 5, 8)  # [degrees] tried about the camera's vertical axis
_PITCHES = (-5, -3, 3, 5)  # and about its horizontal axis
_TURNS = [(yaw, 0) for yaw in _YAWS] + [(0, pitch) for pitch in _PITCHES]  # the first is none
_ENOUGH = 150  # edge points in the images of a camera
_MARGIN = 1.1  # a turned camera must be better by this factor to be believed


def check_edges(tables: Tables, samples: list[int]) -> list[Finding]:
    """For each camera: is the image's gradient at depth edges the largest where the calibration puts them?"""
    edges: dict[int, np.ndarray] = {}
    for sample in samples:
        if (row := tables.key(sample, REFERENCE_CHANNEL)) >= 0:
            edges[sample] = depth_edges(read_lidar(tables.path(row)))
    findings = []
    for channel in (c for c in channels_of(tables) if c in CAMERAS):
        seen = [_gradients(tables, sample, channel, points) for sample, points in edges.items()]
        scores = np.concatenate([s for s in seen if s is not None] or [np.zeros((len(_TURNS), 0))], axis=1)
        findings.append(_edge_finding(channel, scores))
    return findings


def _edge_finding(channel: str, scores: np.ndarray) -> Finding:
    if scores.shape[1] < _ENOUGH:
        return Finding("image edges", channel, None, f"only {scores.shape[1]} LiDAR edges in its images")
    mean = np.nanmean(scores, axis=1)
    here, best = float(mean[0]), int(mean.argmax())
    passed = bool(mean[best] < _MARGIN * here)
    detail = f"image gradient at {scores.shape[1]} LiDAR edges is {here:.2f} times the mean"
    if not passed:
        detail += (
            f", but {mean[best]:.2f} with the camera turned by {_TURNS[best]} deg (yaw, pitch): check its rotation"
        )
    return Finding("image edges", channel, passed, detail)


def depth_edges(points: np.ndarray) -> np.ndarray:
    """The near sides of jumps in depth along each ring: [E, 3] of a raw [P, 5] cloud, in the sensor frame."""
    reach = np.linalg.norm(points[:, :3], axis=1)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    found = []
    for ring in np.unique(points[:, 4]):
        rows = np.flatnonzero((points[:, 4] == ring) & (reach > 3))
        rows = rows[np.argsort(azimuth[rows], kind="stable")]
        jump, beside = np.diff(reach[rows]), np.diff(azimuth[rows]) < 0.02
        least = 0.5 + 0.05 * np.minimum(reach[rows[:-1]], reach[rows[1:]])
        found += [rows[:-1][(jump > least) & beside], rows[1:][(-jump > least) & beside]]
    return points[np.concatenate(found), :3] if found else np.zeros((0, 3), dtype=points.dtype)


def _gradients(tables: Tables, sample: int, channel: str, points: np.ndarray) -> np.ndarray | None:
    """[turns, E] horizontal image gradient, as a multiple of its mean, where each turn puts the points; NaN outside."""
    from scipy.ndimage import gaussian_filter

    row = tables.key(sample, channel)
    if row < 0 or not len(points):
        return None
    rows, cols = tables.data_size[row].tolist()
    factor = min(_WIDTH / cols, 1.0)
    with open_image(tables.path(row)) as file:
        gray = np.asarray(file.convert("L").resize((round(cols * factor), round(rows * factor))), dtype=np.float32)
    gradient = np.abs(np.gradient(gray, axis=1))
    gradient = gaussian_filter(np.minimum(gradient, 4 * gradient.mean()), 0.7)
    matrix = tables.intrinsic(row) * [[factor], [factor], [1]]
    cam_from_lidar = (
        invert(tables.reference_from_sensor(sample, [row])[0])
        @ tables.reference_from_sensor(sample, [tables.key(sample, REFERENCE_CHANNEL)])[0]
    )
    cam = apply(cam_from_lidar, points.astype(np.float64))
    seen = np.full((len(_TURNS), len(points)), np.nan)
    for number, (yaw, pitch) in enumerate(_TURNS):
        x, y, z = _turned(cam, np.radians(yaw), np.radians(pitch))
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.rint(matrix[0, 0] * x / z + matrix[0, 2])
            v = np.rint(matrix[1, 1] * y / z + matrix[1, 2])
        inside = (z > 1) & (u >= 2) & (u < gray.shape[1] - 2) & (v >= 2) & (v < gray.shape[0] - 2)
        seen[number, inside] = gradient[v[inside].astype(int), u[inside].astype(int)] / max(gradient.mean(), 1e-6)
    return seen[:, np.isfinite(seen[0])]


def _turned(cam: np.ndarray, yaw: float, pitch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, z of points [E, 3] in a camera turned about its vertical, then about its horizontal axis [rad]."""
    x = np.cos(yaw) * cam[:, 0] + np.sin(yaw) * cam[:, 2]
    z = np.cos(yaw) * cam[:, 2] - np.sin(yaw) * cam[:, 0]
    return x, np.cos(pitch) * cam[:, 1] - np.sin(pitch) * z, np.sin(pitch) * cam[:, 1] + np.cos(pitch) * z
