"""What each wrong box costs: by how much mAP would rise if a false positive were not there, or a missed object found.

Average precision is the mean over four distances, and a box may be right at one and wrong at another; it costs where it
is wrong. At each distance
- a false positive costs what AP gains when the box is taken away. It took no true box, so nothing else changes but the
  precision behind it;
- a missed object costs what AP gains by one more box on it with a score above all others. No box was near enough to
  take it, so every other box stays what it is. At one distance all missed objects of a class cost the same.
Both are exact, as the official code would compute them anew, in time linear in the boxes. Costs are in mAP: the mean
over the distances, by the number of classes. They do not add up: each is the gain of mending one box alone.
Letters: K found boxes, J true boxes of a class; R = 101 recalls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.scored import DISTANCES, ClassBoxes

_RECALLS = np.linspace(0, 1, 101)
_FIRST = 11  # recalls up to 0.1 do not count
_MIN_PRECISION = 0.1


@dataclass(frozen=True)
class Fault:
    """One wrong box."""

    token: str  # of the sample
    name: str  # class
    missed: bool
    score: float  # of a false positive; -1 where it was missed
    xy: tuple[float, float]  # global [m]
    cost: float  # [mAP]
    within: float  # [m] the greatest of DISTANCES at which it is wrong


def find_faults(classes: Mapping[str, ClassBoxes]) -> list[Fault]:
    """Every box that costs something, the most costly first; equal ones by sample, class and place.

    Args:
        classes: of ``boxes_by_class``.
    """
    faults = []
    for name, boxes in classes.items():
        of_found, of_true = costs(boxes)
        missed = np.stack([_missed(taken, len(boxes.true)) for taken in boxes.taken.T], axis=1)
        sides = ((boxes.found, of_found, boxes.taken < 0, False), (boxes.true, of_true, missed, True))
        for side, cost, wrong, is_missed in sides:
            for k in np.flatnonzero(cost > 0):
                token, (x, y) = boxes.tokens[side.sample[k]], side.xy[k].tolist()
                within = max(distance for distance, so in zip(DISTANCES, wrong[k], strict=True) if so)
                of_all = float(cost[k]) / len(classes)
                faults.append(Fault(token, name, is_missed, float(side.score[k]), (x, y), of_all, within))
    order = {token: i for i, token in enumerate(next(iter(classes.values())).tokens)} if classes else {}
    return sorted(faults, key=lambda f: (-f.cost, order[f.token], f.name, f.missed, f.xy))


def costs(boxes: ClassBoxes) -> tuple[np.ndarray, np.ndarray]:
    """[K] what AP gains without each found box, where it is wrong; [J] what by one more on each missed one.

    The gains may be negative: official precision at a recall is interpolated, not enveloped.
    """
    of_found, of_true = np.zeros(len(boxes.found)), np.zeros(len(boxes.true))
    if not len(boxes.true):
        return of_found, of_true
    for taken in boxes.taken.T:
        hit = taken >= 0
        of_found += _gain_without(hit, len(boxes.true)) / boxes.taken.shape[1]
        more = np.concatenate([[True], hit])
        gain = average_precision(more, len(boxes.true)) - average_precision(hit, len(boxes.true))
        of_true[_missed(taken, len(boxes.true))] += gain / boxes.taken.shape[1]
    return of_found, of_true


def _missed(taken: np.ndarray, num_true: int) -> np.ndarray:
    """[J] bool: true boxes that none took."""
    missed = np.ones(num_true, dtype=bool)
    missed[taken[taken >= 0]] = False
    return missed


def average_precision(hit: np.ndarray, num_true: int) -> float:
    """Official AP of ranked boxes.

    Args:
        hit: [K] bool, by falling score.
        num_true: J.
    """
    if num_true == 0 or not hit.any():
        return 0.0
    right = np.cumsum(hit)
    precision = right / np.arange(1, len(hit) + 1)
    return _mean(np.interp(_RECALLS, right / num_true, precision, right=0))


def _mean(precision_R: np.ndarray) -> float:
    return float(_counted(precision_R).mean()) / (1 - _MIN_PRECISION)


def _counted(precision_R: np.ndarray) -> np.ndarray:
    return np.clip(precision_R[_FIRST:] - _MIN_PRECISION, 0, None)


def _gain_without(hit: np.ndarray, num_true: int) -> np.ndarray:
    """[K] AP without each ranked box less AP; 0 for those that hit.

    The precision at a recall is interpolated between two ranks: the last one that has at most this recall, and the one
    behind it, a hit. A false positive before the first of them is before both, one behind it is behind both: so each
    recall gains the same from every false positive up to its rank.
    """
    if not hit.any():
        return np.zeros(len(hit))
    right = np.cumsum(hit)
    recall = right / num_true
    low = np.searchsorted(recall, _RECALLS, side="right") - 1  # -1: before the first rank
    reached = low < len(hit) - 1
    exact = recall[low.clip(0)] == _RECALLS  # at the last recall nothing is behind
    high = np.minimum(low + 1, len(hit) - 1)

    span = recall[high] - recall[low.clip(0)]
    part = np.divide(_RECALLS - recall[low.clip(0)], span, out=np.zeros(len(_RECALLS)), where=span > 0)

    def precision(fewer: int) -> np.ndarray:
        ranks = np.stack([low.clip(0), high]) + 1.0 - fewer
        at_high = right[high] / ranks[1].clip(1)
        # Where the only rank before the first hit is taken away, that hit's precision holds.
        at_low = np.where(ranks[0] > 0, right[low.clip(0)] / ranks[0].clip(1), at_high)
        between = at_low + part * (at_high - at_low)
        return np.where(reached, between, np.where(exact, at_low, 0))

    gain_R = np.zeros(len(_RECALLS))
    gain_R[_FIRST:] = _counted(precision(1)) - _counted(precision(0))
    gain_R /= (len(_RECALLS) - _FIRST) * (1 - _MIN_PRECISION)
    of_rank = np.bincount(low.clip(0), gain_R * (low >= 0), minlength=len(hit))
    return np.where(hit, 0, of_rank[::-1].cumsum()[::-1])
