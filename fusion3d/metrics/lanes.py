"""Matches sorted into lanes, one for each class and threshold and one for all classes together, and their numbers.

Letters: C classes, T thresholds, N scenes, B resamples; lane (c, t) is number c T + t, and c = C is all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.curves import RECALLS, count_lanes, curves
from fusion3d.metrics.matching import TP_ERRORS, Matches
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

UNDEFINED = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}  # errors that mean nothing
CLASSES = len(DETECTION_CLASSES)
_UNDEFINED = np.array([[error in UNDEFINED.get(name, ()) for error in TP_ERRORS] for name in DETECTION_CLASSES])


@dataclass(frozen=True)
class Stratum:
    """A part of the truth, and the detections that are counted with it.

    A detection that found a truth box goes with that box. One that found nothing goes where its own value puts it; it
    counts in every part where it has no such value.
    """

    truth: np.ndarray  # [G] bool
    found: np.ndarray  # [P] bool: counts if it found nothing


@dataclass(frozen=True)
class Lanes:
    """What resampling counts again."""

    protocol: DetectionProtocol
    start: np.ndarray  # [L + 1] where lanes begin
    first_hit: np.ndarray  # [L + 1] where they begin among the hits
    hit: np.ndarray  # [I] int64, entries that found something, counted from the begin of their lane
    pair: np.ndarray  # [I] int64, row in error
    score: np.ndarray  # [M] float64, falling within a lane
    scene: np.ndarray  # [M] uint32
    error: np.ndarray  # [2 H, 5] float64; the second half, for all classes together, without what is undefined
    truth: np.ndarray  # [N, L] int64 truth boxes

    def curves(self, name: str, threshold: float) -> dict[str, np.ndarray]:
        """Of a class at a threshold, over the recalls 0, 0.01, ..., 1: precision, confidence, and TP_ERRORS."""
        lane = DETECTION_CLASSES.index(name) * len(self.protocol.dist_ths) + self.protocol.dist_ths.index(threshold)
        part = slice(self.start[lane], self.start[lane + 1])
        hits = slice(self.first_hit[lane], self.first_hit[lane + 1])
        once, num_truth = np.ones(len(self.truth), dtype=np.int64), int(self.truth[:, lane].sum())
        entries = self.hit[hits], self.pair[hits], self.score[part], self.scene[part]
        precision, confidence, errors = curves(*entries, self.error, once, num_truth, RECALLS, True)
        return {"precision": precision, "confidence": confidence, **dict(zip(TP_ERRORS, errors, strict=True))}

    def count(self, times: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Every number, for scenes taken any number of times.

        Args:
            times: [B, N] integers; None takes each scene once.

        Returns:
            ``present`` [B, C + 1] bool: is there truth? ``AP`` [B, C + 1, T], ``TP`` [B, C + 1, 5]: 0 and 1 where not;
            NaN where an error is undefined.
        """
        thresholds, num_lanes = self.protocol.dist_ths, self.truth.shape[1]
        times = np.ones((1, len(self.truth)), dtype=np.int64) if times is None else times.astype(np.int64)
        measured = np.arange(num_lanes) % len(thresholds) == thresholds.index(self.protocol.dist_th_tp)
        ap, tp = count_lanes(
            self.start, self.first_hit, self.hit, self.pair, self.score, self.scene, self.error, self.truth, times,
            measured, RECALLS, self.protocol.first, float(self.protocol.min_precision),
        )  # fmt: skip
        tp = tp[:, measured]
        tp[:, :CLASSES][:, _UNDEFINED] = np.nan
        return {
            "present": (times @ self.truth)[:, measured] > 0,
            "AP": ap.reshape(len(times), CLASSES + 1, len(thresholds)),
            "TP": tp,
        }


def make_lanes(matches: Matches, stratum: Stratum | None = None) -> Lanes:
    """The lanes of a result, or of a part of it."""
    num_thresholds, num_scenes = len(matches.protocol.dist_ths), len(matches.samples.scenes)
    label = matches.found.label.astype(np.int64)
    inside = _counted(matches, stratum)
    pooled = np.where(matches.pair < 0, -1, matches.pair + len(matches.pair_truth))  # in the second half of the errors
    entries = [  # of each lane: rows of detections, and of their pairs
        (chosen, pairs[chosen, t])
        for c in range(CLASSES + 1)
        for of_class, pairs in [(label == c, matches.pair) if c < CLASSES else (label >= 0, pooled)]
        for t in range(num_thresholds)
        for chosen in [np.flatnonzero(of_class & inside[:, t])]
    ]
    rows = np.concatenate([rows for rows, _ in entries])
    hits = [np.flatnonzero(pair >= 0) for _, pair in entries]
    chosen = np.ones(len(matches.truth), dtype=bool) if stratum is None else stratum.truth
    truth = np.zeros((num_scenes, CLASSES + 1), dtype=np.int64)
    np.add.at(truth, (matches.truth_scene[chosen], matches.truth.label[chosen]), 1)
    truth[:, CLASSES] = truth[:, :CLASSES].sum(axis=1)
    undefined = _UNDEFINED[matches.truth.label[matches.pair_truth]]
    return Lanes(
        protocol=matches.protocol,
        start=np.cumsum([0, *(len(rows) for rows, _ in entries)]),
        first_hit=np.cumsum([0, *map(len, hits)]),
        hit=np.concatenate(hits),
        pair=np.concatenate([pair[hit] for (_, pair), hit in zip(entries, hits, strict=True)]).astype(np.int64),
        score=matches.score[rows],
        scene=matches.found_scene[rows].astype(np.uint32),
        error=np.concatenate([matches.pair_error, np.where(undefined, np.nan, matches.pair_error)]),
        truth=np.repeat(truth, num_thresholds, axis=1),
    )


def _counted(matches: Matches, stratum: Stratum | None) -> np.ndarray:
    """[P, T] bool: which detections count."""
    if stratum is None:
        return np.ones(matches.pair.shape, dtype=bool)
    truth_of = np.append(stratum.truth[matches.pair_truth], False)[matches.pair]  # the last for -1
    return np.where(matches.pair < 0, stratum.found[:, None], truth_of)
