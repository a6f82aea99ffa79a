"""Random scenes with objects that move, vanish and come back, and a tracker that makes every kind of mistake."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.columns import Racks
from fusion3d.metrics.tracks import Frames, Tracks


@dataclass(frozen=True)
class Mistakes:
    """How bad the tracker is."""

    spread: float = 0.5  # [m]
    lost: float = 0.15  # part of the boxes
    renamed: float = 0.05  # part of the boxes that begin a track of their own
    swapped: float = 0.05  # part of the frames in which two tracks change places
    invented: float = 0.2  # boxes of nothing, per true box
    doubled: float = 0.0  # part of the boxes that are there twice, with one name
    other_class: float = 0.03  # part of the boxes
    ties: bool = False  # positions and scores on a coarse grid


def tracks_of(rows: list[tuple]) -> Tracks:
    """Columns of (frame, track, label, x, y, score, points)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    whole = table[:, [0, 1, 2, 6]].astype(np.int64).T
    center = np.concatenate([table[:, 3:5], np.ones((len(table), 1))], axis=1)
    return Tracks(whole[0], whole[1], whole[2], center, table[:, 5], whole[3])


def random_case(
    seed: int,
    mistakes: Mistakes,
    scenes: int = 2,
    length: int = 8,
    objects: int = 6,
    classes: int = 2,
    area: float = 45.0,
):
    """Frames, ground truth and predictions; objects begin within ``area`` [m] of the ego."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(rng.permutation(scenes), length)
    time = np.cumsum(rng.integers(400_000, 600_000, len(scene)))
    ego = np.array([600.0, 1600.0]) + np.cumsum(rng.normal(0, 2, (len(scene), 2)), axis=0)
    truth, found, fresh = [], [], iter(range(1000, 10**6))
    for begin in range(0, len(scene), length):
        for track in range(objects):
            label = int(rng.integers(classes))
            place, speed = ego[begin] + rng.uniform(-area, area, 2), rng.normal(0, 4, 2)
            first, last = np.sort(rng.integers(0, length + 1, 2))
            score = rng.random()
            for frame in range(begin + first, begin + last):
                place = place + 0.5 * speed
                truth.append((frame, 100 * begin + track, label, *place, 0.0, int(rng.integers(0, 4))))
                for _ in range(1 + (rng.random() < mistakes.doubled)):
                    if rng.random() < mistakes.lost:
                        continue
                    name = next(fresh) if rng.random() < mistakes.renamed else track + 10
                    said = int(rng.integers(7)) if rng.random() < mistakes.other_class else label
                    where = place + rng.normal(0, mistakes.spread, 2)
                    found.append([frame, name, said, *where, np.clip(score + rng.normal(0, 0.2), 0, 1), -1])
                if rng.random() < mistakes.invented:
                    where = place + rng.normal(0, 3, 2)
                    found.append([frame, int(rng.integers(500, 510)), label, *where, rng.random(), -1])
    for frame in np.flatnonzero(rng.random(len(scene)) < mistakes.swapped):
        here = [row for row in found if row[0] == frame]
        if len(here) > 1:
            here[0][1], here[1][1] = here[1][1], here[0][1]
    if mistakes.ties:
        found = [[*row[:3], *np.round(row[3:5]), round(row[5] * 4) / 4, row[6]] for row in found]
        truth = [(*row[:3], *np.round(row[3:5]), *row[5:]) for row in truth]
    order = rng.permutation(len(found))
    turn = rng.normal(size=4)
    racks = Racks(
        sample=np.array([0, 3]),
        center=np.array([[*ego[0], 1.0], [*ego[3], 1.0]]),
        size=np.array([[30.0, 15.0, 80.0], [20.0, 10.0, 80.0]]),
        rotation=np.array([turn / np.linalg.norm(turn), [1.0, 0.0, 0.0, 0.0]]),
    )
    return Frames(scene, time, ego, racks), tracks_of(truth), tracks_of([found[i] for i in order])
