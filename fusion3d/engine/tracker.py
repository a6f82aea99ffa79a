"""Detections to tracks: CenterPoint's greedy tracker (Yin et al., "Center-based 3D Object Detection and Tracking").

Every detection is moved back by its velocity to where it was at the frame before. There, the best detection first, it
takes the nearest track of its class that is not taken yet and lies within the gate of the class. What finds none begins
a track; a track that is not found moves on at its last velocity, and ends when it was not found for too long. Nothing
is learned, and nothing of the future is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion3d.config import TrackerConfig
from fusion3d.types import TRACKING_CLASSES

# [m] CenterPoint's: in nuScenes, 999 of 1000 velocities of its detector are wrong by less than this in 0.5 s.
GATES = {
    "bicycle": 3.0, "bus": 5.5, "car": 4.0, "motorcycle": 13.0, "pedestrian": 1.0, "trailer": 3.0, "truck": 4.0,
}  # fmt: skip


class Tracker:
    """The tracks of one scene; a new scene needs a new one.

    Args:
        config: gates, and when a track ends.
    """

    def __init__(self, config: TrackerConfig) -> None:
        self.max_age = config.max_age
        self.gate = np.array([{**GATES, **config.gates}[name] for name in TRACKING_CLASSES])
        self._time: float | None = None
        self._born = 0
        self._identity = np.zeros(0, dtype=np.int64)
        self._label = np.zeros(0, dtype=np.int64)
        self._center = np.zeros((0, 2))  # where each track was at the frame before, or should have been
        self._velocity = np.zeros((0, 2))
        self._age = np.zeros(0, dtype=np.int64)  # frames since it was found, the one to come included

    def step(
        self, time: float, label: np.ndarray, center: np.ndarray, velocity: np.ndarray, score: np.ndarray
    ) -> np.ndarray:
        """Take the detections of the next frame.

        Args:
            time: of the frame [s], later than the one before.
            label: [K] index in TRACKING_CLASSES.
            center: [K, 2] or [K, 3] in the global frame [m].
            velocity: [K, 2] [m/s]; NaN, unknown, counts as standing still.
            score: [K].

        Returns:
            [K] int64 identities, counted from 0 in the order in which tracks begin.

        Raises:
            ValueError: time does not go forward.
        """
        passed = 0.0 if self._time is None else time - self._time
        if self._time is not None and not passed > 0:
            raise ValueError(f"tracker: expected a frame after {self._time} s, found {time} s; sort the frames by time")
        self._time = time
        center, velocity = center[:, :2], np.nan_to_num(velocity[:, :2], nan=0.0)
        order = np.argsort(-score, kind="stable")
        taken = self._take(label, center - velocity * passed, order)
        identity = np.where(taken >= 0, self._identity[taken] if len(self._identity) else -1, -1)
        new = order[taken[order] < 0]
        identity[new] = np.arange(self._born, self._born + len(new))
        self._born += len(new)
        lost = np.setdiff1d(np.arange(len(self._identity)), taken)
        lost = lost[self._age[lost] < self.max_age]
        self._center = np.concatenate([center, self._center[lost] + self._velocity[lost] * passed])
        self._velocity = np.concatenate([velocity, self._velocity[lost]])
        self._label = np.concatenate([label, self._label[lost]])
        self._identity = np.concatenate([identity, self._identity[lost]])
        self._age = np.concatenate([np.ones(len(center), dtype=np.int64), self._age[lost] + 1])
        return identity

    def _take(self, label: np.ndarray, before: np.ndarray, order: np.ndarray) -> np.ndarray:
        """[K] the row of the track that each detection takes, -1 none."""
        apart = np.linalg.norm(before[:, None] - self._center[None], axis=2)
        possible = (label[:, None] == self._label[None]) & (apart <= self.gate[label][:, None])
        apart = np.where(possible, apart, np.inf)
        taken = np.full(len(label), -1, dtype=np.int64)
        for row in order[possible[order].any(axis=1)]:
            nearest = int(apart[row].argmin())
            if apart[row, nearest] < np.inf:
                taken[row] = nearest
                apart[:, nearest] = np.inf
        return taken


def track_detections(
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    tokens: Sequence[str],
    scenes: Sequence[str],
    times: Sequence[float],
    config: TrackerConfig,
) -> dict[str, list[dict[str, Any]]]:
    """Detections of whole scenes as tracking results.

    Args:
        results: by sample token, records of a detection submission.
        tokens: samples, scene after scene, each in order of time.
        scenes: the scene of each.
        times: of each [s].
        config: of the tracker; detections with a lower score than its ``min_score`` are left out.

    Returns:
        By token, the records of the seven classes that move, with ``tracking_id`` ``<scene>-<number>``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    tracker, scene_now = Tracker(config), None
    for token, scene, time in zip(tokens, scenes, times, strict=True):
        if scene != scene_now:
            tracker, scene_now = Tracker(config), scene
        kept = [
            record
            for record in results[token]
            if record["detection_name"] in GATES and record["detection_score"] >= config.min_score
        ]
        identity = tracker.step(
            time,
            np.array([TRACKING_CLASSES.index(record["detection_name"]) for record in kept], dtype=np.int64),
            np.array([record["translation"] for record in kept]).reshape(-1, 3),
            np.array([record["velocity"] for record in kept]).reshape(-1, 2),
            np.array([record["detection_score"] for record in kept], dtype=np.float64),
        )
        found[token] = [
            {key: record[key] for key in ("sample_token", "translation", "size", "rotation", "velocity")}
            | {
                "tracking_id": f"{scene}-{number}",
                "tracking_name": record["detection_name"],
                "tracking_score": record["detection_score"],
            }
            for record, number in zip(kept, identity.tolist(), strict=True)
        ]
    return found
