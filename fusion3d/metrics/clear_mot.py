"""Who follows whom: ground-truth objects and predicted tracks matched over time, and the counts of CLEAR MOT.

The rules are those of py-motmetrics 1.4.0, on which the devkit builds: a pair that was together stays together while it
is near enough; the rest is paired so that as many as possible are, at the least distance.

Letters: F frames, G ground-truth boxes, P predicted boxes, both frame by frame; N objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.mot_kernels import MATCH, MISS, SWITCH, follow, lives

FRAME_TIME = 0.5  # [s] of a frame, for durations


@dataclass(frozen=True)
class Rows:
    """Boxes of one class, frame by frame."""

    start: np.ndarray  # [F+1] int64: those of frame f are start[f] : start[f+1]
    track: np.ndarray  # [G or P] int64 identity, unique over all scenes
    center: np.ndarray  # [G or P, 2] float64 [m], global
    score: np.ndarray  # [G or P] float64

    def __len__(self) -> int:
        return len(self.track)

    @staticmethod
    def of(frame: np.ndarray, track: np.ndarray, center: np.ndarray, score: np.ndarray, num_frames: int) -> Rows:
        """Rows of boxes that are sorted by frame."""
        return Rows(
            start=np.searchsorted(frame, np.arange(num_frames + 1)).astype(np.int64),
            track=np.ascontiguousarray(track, dtype=np.int64),
            center=np.ascontiguousarray(center[:, :2], dtype=np.float64),
            score=np.ascontiguousarray(score, dtype=np.float64),
        )

    @property
    def frame(self) -> np.ndarray:
        """[G or P] int64: the frame of each box."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def above(self, threshold: float) -> Rows:
        """The boxes whose score is at least ``threshold``."""
        keep = self.score >= threshold
        start = np.concatenate([[0], np.cumsum(keep)])[self.start].astype(np.int64)
        return Rows(start, self.track[keep], self.center[keep], self.score[keep])


@dataclass(frozen=True)
class Matches:
    """What became of every box."""

    state: np.ndarray  # [G] int8: MISS, MATCH, or SWITCH to another track than the last one
    distance: np.ndarray  # [G] float64 [m] between centres, NaN for a miss
    found: np.ndarray  # [P] int8: the state of its partner, MISS where it has none


def match(truth: Rows, found: Rows, limit: float) -> Matches:
    """Match over time.

    Args:
        truth: no object twice in a frame.
        found: predictions.
        limit: pairs are nearer than this [m].
    """
    frames = np.flatnonzero((np.diff(truth.start) > 0) & (np.diff(found.start) > 0))
    size = np.zeros(len(truth.start) - 1, dtype=np.int64)
    size[frames] = np.diff(truth.start)[frames] * np.diff(found.start)[frames]
    start = np.concatenate([[0], np.cumsum(size)])
    distance = np.empty(start[-1])
    for f in frames:
        a = truth.center[truth.start[f] : truth.start[f + 1]]
        b = found.center[found.start[f] : found.start[f + 1]]
        distance[start[f] : start[f + 1]] = distances(a, b).reshape(-1)
    distance[distance >= limit] = np.inf
    num_objects = int(truth.track.max(initial=-1)) + 1
    state, apart, partner = follow(truth.start, truth.track, found.start, found.track, start, distance, num_objects)
    return Matches(state, apart, partner)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M] distances [m] between [N, 2] and [M, 2] points, with the rounding of the devkit's.

    It uses scikit-learn's |a|^2 - 2ab + |b|^2, which far from the origin of the map knows a distance near zero to no
    better than 1e-5 m. Whoever wants its MOTP must do the same, frame by frame.
    """
    squared = -2 * (a @ b.T)
    squared += np.einsum("ij,ij->i", a, a)[:, None]
    squared += np.einsum("ij,ij->i", b, b)[None]
    return np.sqrt(np.maximum(squared, 0))


def count(truth: Rows, found: Rows, matches: Matches) -> dict[str, float]:
    """The numbers of a class at one threshold, by the devkit's names in capitals; NaN where one is not defined.

    Args:
        truth: at least one box; objects without gaps.
        found: predictions.
        matches: of the two.
    """
    matched, switched = int((matches.state == MATCH).sum()), int((matches.state == SWITCH).sum())
    missed, false = int((matches.state == MISS).sum()), int((matches.found == MISS).sum())
    there = (np.diff(truth.start) > 0) | (np.diff(found.start) > 0)
    frames, objects = int(there.sum()), len(truth)
    order = np.argsort(truth.track, kind="stable")
    fared = lives(truth.track[order], matches.state[order])
    tracked, mostly_tracked, mostly_lost, broken, delay, gap = fared
    recall = matched / objects
    found_again = matched + switched
    motar = 1 - (missed + switched + false - (1 - recall) * objects) / (recall * objects) if matched else np.nan
    return {
        "recall": found_again / objects,
        "MOTAR": max(0.0, motar) if matched else np.nan,
        "GT": objects,
        "MOTA": max(0.0, 1 - (missed + switched + false) / objects),
        "MOTP": float(np.nansum(matches.distance)) / found_again if found_again else np.nan,
        "MT": mostly_tracked,
        "ML": mostly_lost,
        "FAF": 100 * false / frames,
        "TP": matched,
        "FP": false,
        "FN": missed,
        "IDS": switched,
        "FRAG": broken,
        "TID": FRAME_TIME * delay / tracked if tracked else np.nan,
        "LGD": FRAME_TIME * gap / tracked if tracked else np.nan,
    }
