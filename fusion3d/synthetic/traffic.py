"""Who moves how: car following along routes, gates where one has to wait, and the overlap test of moving rectangles.

Car following is the Intelligent Driver Model (Treiber, Hennecke, Helbing 2000): a vehicle brakes for the nearest
thing on its path, be it another vehicle's footprint or a closed gate (a red stop line, a crossing with someone on it),
and for curves, so that the lateral acceleration stays below ``LATERAL``. Commands pass a first-order lag.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fusion3d.synthetic.curves import Path
from fusion3d.synthetic.scene import SIM_STEP

MAX_ACCELERATION = 1.8  # [m/s^2]
COMFORT = 2.0  # [m/s^2] deceleration that a driver likes
MAX_BRAKING = 3.2  # [m/s^2]
HEADWAY = 1.2  # [s]
STANDSTILL = 2.0  # [m] gap behind a standing vehicle
LATERAL = 1.8  # [m/s^2]
LAG = 0.25  # [s] of the acceleration behind the command
_DECIDE = 4  # simulation steps between two looks at the others
_AHEAD = np.arange(0.0, 54.0, 1.5)  # [m] where a driver looks along the path
_FAR = 1e6


@dataclass(frozen=True)
class Gate:
    """A place on a path that is closed for a time."""

    s: float  # [m] where the front has to stop
    start: float  # [s]
    end: float  # [s]


@dataclass(frozen=True)
class Mover:
    """Something that follows a path with its rear axle."""

    path: Path
    category: str
    size: np.ndarray  # [3] length, width, height [m]
    s: float  # [m] start of the rear axle
    speed: float  # [m/s] it would like to drive
    back: float  # [m] from the rear axle to the middle of the box
    gates: tuple[Gate, ...] = field(default=())
    start_speed: float | None = None  # [m/s] at t = 0; None: as fast as it can safely be

    @property
    def front(self) -> float:
        """[m] from the rear axle to the front of the box."""
        return self.back + self.size[0] / 2


@dataclass(frozen=True)
class Motion:
    """Movers over time, every SIM_STEP."""

    s: np.ndarray  # [N, T] arc length of the rear axle [m]
    speed: np.ndarray  # [N, T] [m/s]


def speed_limit(path: Path, speed: float) -> np.ndarray:
    """[N] greatest speed at every point of a path [m/s]: wished, slower in curves, braking gently before them."""
    limit = np.minimum(speed, np.sqrt(LATERAL / np.maximum(np.abs(path.curvature), 1e-6)))
    step = path.s[1]
    for i in range(len(limit) - 2, -1, -1):
        limit[i] = min(limit[i], np.sqrt(limit[i + 1] ** 2 + 2 * 1.3 * step))
    return limit


class _Crowd:
    """The movers' columns, and what each sees ahead."""

    def __init__(self, movers: list[Mover]) -> None:
        count = len(movers)
        longest = max(len(m.path.points) for m in movers)
        gates = max([len(m.gates) for m in movers] + [1])
        self.points = np.zeros((count, longest, 2))
        self.headings = np.zeros((count, longest))
        self.limit = np.zeros((count, longest))
        self.gates = np.full((count, gates, 3), _FAR)
        self.gates[..., 2] = -_FAR
        for i, mover in enumerate(movers):
            n = len(mover.path.points)
            self.points[i, :n], self.points[i, n:] = mover.path.points, mover.path.points[-1]
            self.headings[i, :n], self.headings[i, n:] = mover.path.headings, mover.path.headings[-1]
            limit = speed_limit(mover.path, mover.speed)
            self.limit[i, :n], self.limit[i, n:] = limit, limit[-1]
            for g, gate in enumerate(mover.gates):
                self.gates[i, g] = gate.s, gate.start, gate.end
        self.step = np.array([m.path.s[1] for m in movers])
        self.end = np.array([m.path.length for m in movers]) - 1.0
        self.size = np.stack([m.size for m in movers])
        self.back = np.array([m.back for m in movers])
        self.front = np.array([m.front for m in movers])

    def _index(self, s: np.ndarray) -> np.ndarray:
        step = self.step[:, None] if s.ndim == 2 else self.step
        return np.clip(np.rint(s / step).astype(np.int64), 0, self.points.shape[1] - 1)

    def limit_at(self, s: np.ndarray) -> np.ndarray:
        return self.limit[np.arange(len(s)), self._index(s)]

    def obstacles(self, s: np.ndarray, speed: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """For each mover, rows of (gap [m], speed of the obstacle [m/s]): the leader, the gates and the road's end."""
        rows = np.arange(len(s))
        at = self._index(s)
        heading = self.headings[rows, at]
        direction = np.stack([np.cos(heading), np.sin(heading)], axis=-1)
        middle = self.points[rows, at] + (s - at * self.step + self.back)[:, None] * direction
        ahead = self._index((s + self.front)[:, None] + _AHEAD)
        offset = self.points[rows[:, None], ahead][:, :, None] - middle  # [N, A, N, 2]
        lon = np.abs((offset * direction).sum(-1))
        lat = np.abs(offset[..., 1] * direction[:, 0] - offset[..., 0] * direction[:, 1])
        margin = self.size[:, 1][:, None, None] / 2 + 0.25
        hit = (lon < self.size[:, 0] / 2 + margin) & (lat < self.size[:, 1] / 2 + margin)
        hit[rows, :, rows] = False
        first = np.where(hit.any(axis=1), hit.argmax(axis=1), -1)  # [N, N]
        gap = np.where(first >= 0, _AHEAD[first], _FAR)
        leader = gap.argmin(axis=1)
        crossing = heading[leader] - self.headings[rows, ahead[rows, np.maximum(first[rows, leader], 0)]]
        leader_speed = np.maximum(0.0, speed[leader] * np.cos(crossing))

        distance = self.gates[..., 0] - (s + self.front)[:, None]  # [N, G]
        closed = (self.gates[..., 1] <= time) & (time < self.gates[..., 2]) & (distance > 0)
        closed &= (speed**2)[:, None] < 2 * MAX_BRAKING * np.maximum(distance - 0.3, 1e-3)
        gate = np.where(closed, distance + STANDSTILL - 0.7, _FAR).min(axis=1)
        end = np.maximum(self.end - s - self.front, 0.05)
        gaps = np.stack([gap[rows, leader], gate, end], axis=1)
        return gaps, np.stack([leader_speed, 0 * s, 0 * s], axis=1)


def simulate(movers: list[Mover], duration: float) -> Motion:
    """Drive all movers together for ``duration`` seconds; the same input gives the same motion."""
    crowd = _Crowd(movers)
    steps = round(duration / SIM_STEP) + 1
    s, speed = np.zeros((len(movers), steps)), np.zeros((len(movers), steps))
    now = np.array([m.s for m in movers])
    v = crowd.limit_at(now)
    for _ in range(5):  # nobody may start faster than it can stop behind, or follow, what is ahead
        gaps, others = crowd.obstacles(now, 0 * v, 0.0)
        others[:, 0] = crowd.obstacles(now, v, 0.0)[1][:, 0]
        safe = np.sqrt(others**2 + 2 * 1.6 * np.maximum(gaps - STANDSTILL - 0.5 * v[:, None], 0.0)).min(axis=1)
        v = np.minimum(v, safe)
    given = np.array([np.nan if m.start_speed is None else m.start_speed for m in movers])
    v = np.where(np.isnan(given), v, np.minimum(v, given))
    a = np.zeros(len(movers))
    for t in range(steps):
        s[:, t], speed[:, t] = now, v
        if t % _DECIDE == 0:
            gaps, others = crowd.obstacles(now, v, t * SIM_STEP)
        else:
            gaps = gaps + (others - v[:, None]) * SIM_STEP
        limit = crowd.limit_at(now + 0.8 * v)
        free = np.where(v <= limit, MAX_ACCELERATION * (1 - (v / limit) ** 4), np.maximum(-COMFORT, (limit - v) / 0.6))
        wish = STANDSTILL + np.maximum(
            0.0,
            v[:, None] * HEADWAY + v[:, None] * (v[:, None] - others) / (2 * np.sqrt(MAX_ACCELERATION * COMFORT)),
        )
        command = free - MAX_ACCELERATION * ((wish / np.maximum(gaps, 0.1)) ** 2).max(axis=1)
        a = a + (np.clip(command, -MAX_BRAKING, MAX_ACCELERATION) - a) * (SIM_STEP / LAG)
        faster = np.maximum(v + a * SIM_STEP, 0.0)
        a = np.where((faster <= 0.0) & (a < 0), 0.0, a)
        now = now + (v + faster) / 2 * SIM_STEP
        v = faster
    return Motion(s, speed)


def footprints(mover: Mover, s: np.ndarray) -> np.ndarray:
    """[T, 5] x, y, length, width, yaw of a mover's box at arc lengths ``s`` of its rear axle; yaw unwrapped."""
    yaw = np.unwrap(mover.path.yaw(s))
    center = mover.path.at(s) + mover.back * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    length, width = np.full_like(s, mover.size[0]), np.full_like(s, mover.size[1])
    return np.concatenate([center, length[:, None], width[:, None], yaw[:, None]], axis=1)


def overlap(a: np.ndarray, b: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Do rectangles come closer than ``margin`` along every separating axis? Shapes broadcast.

    Args:
        a: [..., 5] x, y, length, width, yaw.
        b: [..., 5].
        margin: [m] added between them; 0 is plain overlap.

    Returns:
        [...] bool, by the separating axis theorem.
    """
    offset = b[..., :2] - a[..., :2]
    relative = b[..., 4] - a[..., 4]
    c, s = np.abs(np.cos(relative)), np.abs(np.sin(relative))
    meets = np.ones(offset.shape[:-1], dtype=bool)
    for near, far in ((a, b), (b, a)):
        cos, sin = np.cos(near[..., 4]), np.sin(near[..., 4])
        lon = np.abs(offset[..., 0] * cos + offset[..., 1] * sin)
        lat = np.abs(offset[..., 1] * cos - offset[..., 0] * sin)
        meets &= lon < (near[..., 2] + far[..., 2] * c + far[..., 3] * s) / 2 + margin
        meets &= lat < (near[..., 3] + far[..., 2] * s + far[..., 3] * c) / 2 + margin
    return meets


def ever_overlap(track: np.ndarray, others: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """[A] bool: which of the others a rectangle meets at any time.

    Args:
        track: [T, 5], or [1, 5] for one that stands still.
        others: [A, T, 5] or [A, 1, 5].
        margin: see ``overlap``.
    """
    reach = (np.hypot(track[0, 2], track[0, 3]) + np.hypot(others[:, 0, 2], others[:, 0, 3])) / 2 + margin
    apart = ((others[..., :2] - track[:, :2]) ** 2).sum(-1).min(axis=1)
    found = apart < reach**2
    close = np.flatnonzero(found)
    found[close] = overlap(track, others[close], margin).any(axis=1)
    return found
