"""Curves in the plane, as polylines and as smooth paths by arc length."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline


def resample(points: np.ndarray, step: float) -> np.ndarray:
    """[N, 2] polyline at (almost) equal steps, both ends kept."""
    length = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
    keep = np.r_[True, np.diff(length) > 1e-9]
    at = np.linspace(0.0, length[-1], max(2, round(length[-1] / step) + 1))
    return np.stack([np.interp(at, length[keep], points[keep, i]) for i in range(2)], axis=-1)


class Path:
    """A smooth curve, by arc length: lines and arcs are blended so that curvature, and so yaw rate, has no jumps."""

    SMOOTHING = 1.5  # [m] standard deviation of the blend

    def __init__(self, points: np.ndarray) -> None:
        points = resample(np.asarray(points, dtype=np.float64), 0.5)
        reach = min(9, len(points) - 1)
        weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) * 0.5 / self.SMOOTHING) ** 2)
        before = 2 * points[0] - points[reach:0:-1]
        after = 2 * points[-1] - points[-2 : -reach - 2 : -1]
        padded = np.concatenate([before, points, after])
        smooth = np.stack([np.convolve(padded[:, i], weight / weight.sum(), "valid") for i in range(2)], axis=-1)
        self.points = resample(smooth, 1.0)  # [N, 2]
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        self.s = np.r_[0.0, np.cumsum(steps)]  # [N]
        self.length = float(self.s[-1])
        self._spline = CubicSpline(self.s, self.points)
        first, second = self._spline(self.s, 1), self._spline(self.s, 2)
        self.headings = np.unwrap(np.arctan2(first[:, 1], first[:, 0]))  # [N]
        self.curvature = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]  # [N] 1/m, left is positive

    def at(self, s: np.ndarray | float, offset: float = 0.0) -> np.ndarray:
        """[..., 2] positions at arc lengths ``s``, ``offset`` metres to the right of the path."""
        tangent = self._spline(s, 1)
        right = np.stack([tangent[..., 1], -tangent[..., 0]], axis=-1)
        return self._spline(s) + offset * right / np.linalg.norm(tangent, axis=-1, keepdims=True)

    def yaw(self, s: np.ndarray | float) -> np.ndarray:
        """[...] heading at arc lengths ``s`` [rad], in (-pi, pi]."""
        tangent = self._spline(s, 1)
        return np.arctan2(tangent[..., 1], tangent[..., 0])

    def nearest(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For [..., 2] points: arc length of and distance to the nearest of the path's own points (1 m apart)."""
        distance = np.linalg.norm(np.asarray(xy)[..., None, :] - self.points, axis=-1)
        index = distance.argmin(axis=-1)
        return self.s[index], distance.min(axis=-1)


def shift(line: np.ndarray, left: float) -> np.ndarray:
    """A polyline moved sideways, to the left where ``left`` is positive [m]."""
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    return line + left * np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)


def band(line: np.ndarray, left: float, right: float) -> np.ndarray:
    """Polygon between two sideways offsets of a polyline, counter-clockwise (``left`` > ``right``)."""
    return np.concatenate([shift(line, right), shift(line, left)[::-1]])


def turned(points: ArrayLike, angle: float) -> np.ndarray:
    """[..., 2] points rotated about the origin, counter-clockwise [rad]."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points) @ np.array([[c, s], [-s, c]])


def bezier(p0: np.ndarray, h0: float, p1: np.ndarray, h1: float) -> np.ndarray:
    """[N, 2] curve from ``p0`` with heading ``h0`` to ``p1`` with heading ``h1``; a quarter circle where one fits."""
    chord = float(np.linalg.norm(p1 - p0))
    handle = chord * (0.5523 / np.sqrt(2) if abs(np.sin((h1 - h0) / 2)) > 0.1 else 1 / 3)
    a = p0 + handle * np.array([np.cos(h0), np.sin(h0)])
    b = p1 - handle * np.array([np.cos(h1), np.sin(h1)])
    t = np.linspace(0.0, 1.0, max(4, int(chord / 0.5)))[:, None]
    return (1 - t) ** 3 * p0 + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 * p1
