"""nuScenes tracking scores: AMOTA, AMOTP and the numbers around them, equal to those of the devkit (1.2.0).

AMOTA and AMOTP average over 40 levels of recall (Weng and Kitani, "A Baseline for 3D Multi-Object Tracking", 2019);
the other numbers are those of CLEAR MOT at the score threshold where MOTA is best.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.metrics.clear_mot import Matches, Rows, count, match
from fusion3d.metrics.mot_kernels import MATCH
from fusion3d.metrics.tracks import Frames, Tracks, prepare
from fusion3d.types import TRACKING_CLASSES

PROTOCOL = (
    "nuScenes tracking_nips_2019: 7 classes; centres within 2 m in the plane; 40 levels of recall from 0.1 to 1; "
    "ranges, bicycle racks and boxes without points as in detection; gaps in tracks filled"
)
MATCH_DISTANCE = 2.0  # [m]
MIN_RECALL, NUM_LEVELS = 0.1, 40
NAMES = (
    "AMOTA", "AMOTP", "recall", "MOTAR", "GT", "MOTA", "MOTP", "MT", "ML", "FAF", "TP", "FP", "FN", "IDS", "FRAG",
    "TID", "LGD",
)  # fmt: skip
SUMMED = ("MT", "ML", "TP", "FP", "FN", "IDS", "FRAG")  # over classes; the others are averaged
# What a class has at every level when nothing of it was found; "objects" and "boxes" are numbers of the ground truth.
NOTHING_FOUND = {
    "recall": 0.0, "MOTAR": 0.0, "GT": "boxes", "MOTA": 0.0, "MOTP": 2.0, "MT": 0.0, "ML": "objects", "FAF": 500.0,
    "TP": 0.0, "FP": np.nan, "FN": "boxes", "IDS": np.nan, "FRAG": np.nan, "TID": 20.0, "LGD": 20.0,
}  # fmt: skip


def score_tracking(frames: Frames, truth: Tracks, found: Tracks) -> dict[str, Any]:
    """Official nuScenes tracking numbers (configuration ``tracking_nips_2019``).

    Args:
        frames: every sample of the scenes that are scored.
        truth: annotations of the seven classes.
        found: predicted tracks.

    Returns:
        ``NAMES``, of all classes together; and ``classes.<name>``, the same of each class. NaN where a number is not
        defined: all of a class that the ground truth does not have.

    Raises:
        Fusion3DError: a box has no frame or class, or a number that is not finite; the ground truth has an object
            twice in a frame.
    """
    levels = recall_levels(frames, truth, found)
    classes = {name: _of_class(of) for name, of in levels.items()}
    whole = {}
    for name in NAMES:
        values = np.array([row[name] for row in classes.values()])
        known = values[~np.isnan(values)]
        whole[name] = float(known.sum()) if name in SUMMED else float(known.mean()) if len(known) else np.nan
    return {**whole, "classes": classes}


def recall_levels(frames: Frames, truth: Tracks, found: Tracks) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of each class at every level of recall.

    Args:
        frames: as in ``score_tracking``.
        truth: annotations.
        found: predicted tracks.

    Returns:
        By class name, by name (``NAMES`` without the first two, ``confidence`` and ``recall_hypo``), [40] float64
        from recall 1 down to 0.1; NaN for levels that are not reached, and all of them for a class without truth.
    """
    truth, found = prepare(truth, frames), prepare(found, frames)
    levels = {}
    for label, name in enumerate(TRACKING_CLASSES):
        rows = [
            Rows.of(of.frame, of.track, of.center, of.score, len(frames))
            for of in (truth[truth.label == label], found[found.label == label])
        ]
        levels[name] = _levels(*rows)
    return levels


def _levels(truth: Rows, found: Rows) -> dict[str, np.ndarray]:
    names = ("confidence", "recall_hypo", *NAMES[2:])
    levels = {name: np.full(NUM_LEVELS, np.nan) for name in names}
    if len(truth) == 0:
        return levels
    if len(np.unique(truth.frame * (truth.track.max() + 1) + truth.track)) < len(truth):
        raise Fusion3DError("tracking: the ground truth has an object twice in a frame; repair its annotations")
    confidence, hypothetical = score_thresholds(truth, found, match(truth, found, MATCH_DISTANCE))
    levels |= {"confidence": confidence, "recall_hypo": hypothetical}
    reached = np.unique(confidence[~np.isnan(confidence)])
    for threshold in reached:
        above = found.above(threshold)
        numbers = count(truth, above, match(truth, above, MATCH_DISTANCE))
        for name, value in numbers.items():
            levels[name][confidence == threshold] = value
    if len(reached) == 0:
        of_truth = {"boxes": len(truth), "objects": len(np.unique(truth.track))}
        for name, value in NOTHING_FOUND.items():
            levels[name][:] = of_truth[value] if isinstance(value, str) else value
    return levels


def score_thresholds(truth: Rows, found: Rows, matches: Matches) -> tuple[np.ndarray, np.ndarray]:
    """The track scores at which each level of recall is reached.

    Args:
        truth: at least one box.
        found: all predictions, with the scores of their tracks.
        matches: of the two.

    Returns:
        [40] score and [40] recall, from recall 1 down to 0.1; the score is NaN where that recall is not reached, and
        both are where nothing was found.
    """
    pair = found.frame * (found.track.max(initial=0) + 1) + found.track
    hit = np.isin(pair, pair[matches.found == MATCH])  # where a track is twice in a frame, both count
    score = np.sort(found.score[hit])[::-1]
    if len(score) == 0:
        return np.full(NUM_LEVELS, np.nan), np.full(NUM_LEVELS, np.nan)
    recall = np.arange(1, len(score) + 1) / len(truth)
    wanted = np.linspace(MIN_RECALL, 1, NUM_LEVELS).round(12)
    threshold = np.interp(wanted, recall, score)
    threshold[wanted > recall.max()] = np.nan
    return threshold[::-1], wanted[::-1]


def _of_class(levels: dict[str, np.ndarray]) -> dict[str, float]:
    """The numbers of a class from those at all levels."""
    mota = levels["MOTA"]
    if np.isnan(mota).all():
        return dict.fromkeys(NAMES, np.nan)
    best = int(np.nanargmax(mota))  # the first, with the highest recall, of equal ones
    return {
        "AMOTA": _average(levels["MOTAR"], 0.0),
        "AMOTP": _average(levels["MOTP"], MATCH_DISTANCE),
        **{name: float(levels[name][best]) for name in NAMES[2:]},
    }


def _average(values: np.ndarray, worst: float) -> float:
    """The mean over levels; one that is not reached has the worst value."""
    return np.nan if np.isnan(values).all() else float(np.nan_to_num(values, nan=worst).mean())
