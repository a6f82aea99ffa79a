"""Small worlds with known answers, for tests of planning's metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion3d.metrics.planning import Agents, Drives
from fusion3d.metrics.planning.drives import LIDAR_MOUNT

NAMES = (
    "animal", "human.pedestrian.adult", "movable_object.trafficcone", "vehicle.bicycle", "vehicle.car",
    "vehicle.emergency.police",
)  # fmt: skip
CAR, ADULT, CONE = NAMES.index("vehicle.car"), NAMES.index("human.pedestrian.adult"), 2


def arc(speed, rate, time) -> np.ndarray:
    """[N, T, 3] poses at times [T] of cars of given speed and yaw rate [N], on circles from the origin."""
    speed, rate = np.atleast_1d(speed).astype(float)[:, None], np.atleast_1d(rate).astype(float)[:, None]
    angle, far = rate * time, speed * time
    chord = far * np.sinc(angle / (2 * np.pi))
    return np.stack(np.broadcast_arrays(chord * np.cos(angle / 2), chord * np.sin(angle / 2), angle), axis=-1)


def straight(speed, steps: int = 6) -> np.ndarray:
    """[N, T, 3] along x."""
    return arc(speed, np.zeros_like(np.atleast_1d(speed), dtype=float), 0.5 * np.arange(1, steps + 1))


def boxes(rows: Sequence[tuple], names: Sequence[str] = NAMES) -> Agents:
    """Agents from rows of (sample, step, track, category, x, y, length, width, yaw)."""
    rows = sorted(rows)
    table = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    box = np.array([row[4:] for row in rows], dtype=np.float64).reshape(-1, 5)
    yes = np.ones(len(rows), dtype=bool)
    return Agents(table[:, 0], table[:, 1], box, table[:, 2], table[:, 3], yes, yes, tuple(names))


def parked(sample: int, x: float, y: float, yaw: float = 0.0, category: int = CAR, track: int = 0, size=(4.6, 1.95)):
    """Rows of one that stands there at every keyframe."""
    return [(sample, step, track, category, x, y, *size, yaw) for step in range(-2, 9)]


def drives(future: np.ndarray, agents: Agents | None = None, past=None, known=None, scenes=None, **about) -> Drives:
    """Samples from their futures [N, 6, 3]; before now they moved as in the first step, unless ``past`` is given."""
    count = len(future)
    if past is None:
        past = -future[:, :1] * np.array([1, 2])[None, :, None]
        past[..., 2] = 0
    return Drives(
        tuple(f"sample-{i:04d}" for i in range(count)),
        tuple(f"scene-{i // 10:04d}" for i in range(count)) if scenes is None else tuple(scenes),
        np.asarray(future, dtype=np.float64),
        np.broadcast_to(0.5 * np.arange(1, 7), future.shape[:2]),
        np.ones(future.shape[:2], dtype=bool) if known is None else known,
        past,
        np.broadcast_to([0.5, 1.0], (count, 2)),
        np.ones((count, 2), dtype=bool),
        Agents.none() if agents is None else agents,
        np.tile(LIDAR_MOUNT, (count, 1)),
        about,
        0.5 * np.arange(count),
    )


def traffic(seed: int, count: int, people: int = 12) -> Drives:
    """Cars on circles among agents that drive straight, turn up late, leave early or are missing for a while."""
    rng = np.random.default_rng(seed)
    speed, rate = rng.uniform(0, 12, count), rng.uniform(-0.3, 0.3, count)
    future = arc(speed, rate, 0.5 * np.arange(1, 7))
    rows = []
    for sample in range(count):
        for track in range(people):
            place, move = rng.uniform(-8, 30, 2) - (0, 11), rng.normal(0, 2, 2)
            move = move * rng.integers(0, 2)
            category, yaw = int(rng.integers(len(NAMES))), rng.uniform(-3, 3)
            size = rng.uniform(0.5, 5), rng.uniform(0.4, 2.2)
            first, last = sorted(rng.integers(-3, 10, 2))
            for step in range(max(first, -2), min(last, 8) + 1):
                if rng.random() < 0.95:
                    x, y = place + 0.5 * step * move
                    rows.append((sample, step, track, category, x, y, *size, yaw + 0.05 * step))
    return drives(future, boxes(rows), arc(speed, rate, -0.5 * np.arange(1, 3)))
