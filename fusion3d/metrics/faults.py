"""What each wrong box costs: by how much mAP would rise if a false positive were not there, or a missed object found.

Average precision is the mean over the distances of the protocol, and a box may be right at one and wrong at another; it
costs where it is wrong. At each distance
- a false positive costs what AP gains when the box is taken away. It took no true box, so nothing else changes but the
  precision behind it;
- a missed object costs what AP gains by one more box on it with a score above all others. No box was near enough to
  take it, so every other box stays what it is. At one distance all missed objects of a class cost the same.
Both are exact, as the official code would compute them anew, in time linear in the boxes. Costs are in mAP: the mean
over the distances, by the number of classes. They do not add up: each is the gain of mending one box alone.
Letters: K found boxes, J true boxes of a class; T distances; R = 101 recalls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.curves import RECALLS
from fusion3d.metrics.matching import Matches
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.types import DETECTION_CLASSES


@dataclass(frozen=True)
class Fault:
    """One wrong box."""

    token: str  # of the sample
    name: str  # class
    missed: bool
    score: float  # of a false positive; -1 where it was missed
    xy: tuple[float, float]  # in ego [m]
    cost: float  # [mAP]
    within: float  # [m] the greatest distance at which it is wrong


@dataclass(frozen=True)
class ClassBoxes:
    """What was matched of one class."""

    found: np.ndarray  # [K] int64, rows of Matches.found, best first
    true: np.ndarray  # [J] int64, rows of Matches.truth
    hit: np.ndarray  # [K, T] bool: did it find a true box?
    missed: np.ndarray  # [J, T] bool: did no box find it?


def boxes_by_class(matches: Matches) -> dict[str, ClassBoxes]:
    """The boxes of every class that were scored."""
    missed = np.ones((len(matches.truth), matches.pair.shape[1]), dtype=bool)
    row, at = np.nonzero(matches.pair >= 0)
    missed[matches.pair_truth[matches.pair[row, at]], at] = False
    classes = {}
    for label, name in enumerate(DETECTION_CLASSES):
        found, true = (np.flatnonzero(of.label == label) for of in (matches.found, matches.truth))
        classes[name] = ClassBoxes(found, true, matches.pair[found] >= 0, missed[true])
    return classes


def find_faults(matches: Matches) -> list[Fault]:
    """Every box that costs something, the most costly first; equal ones by sample, class and place."""
    faults = []
    for name, boxes in boxes_by_class(matches).items():
        of_found, of_true = costs(boxes, matches.protocol)
        sides = (
            (matches.found, boxes.found, of_found, ~boxes.hit, False),
            (matches.truth, boxes.true, of_true, boxes.missed, True),
        )
        for objects, rows, cost, wrong, missed in sides:
            for k in np.flatnonzero(cost > 0):
                row, distance = rows[k], float(objects.distance[rows[k]])
                azimuth = float(objects.azimuth[row])
                fault = Fault(
                    token=matches.samples.tokens[objects.sample[row]],
                    name=name,
                    missed=missed,
                    score=-1.0 if missed else float(matches.score[row]),
                    xy=(distance * math.cos(azimuth), distance * math.sin(azimuth)),
                    cost=float(cost[k]) / len(DETECTION_CLASSES),
                    within=max(np.array(matches.protocol.dist_ths)[wrong[k]].tolist()),
                )
                faults.append(fault)
    order = {token: i for i, token in enumerate(matches.samples.tokens)}
    return sorted(faults, key=lambda f: (-f.cost, order[f.token], f.name, f.missed, f.xy))


def costs(boxes: ClassBoxes, protocol: DetectionProtocol = CVPR_2019) -> tuple[np.ndarray, np.ndarray]:
    """[K] what AP gains without each found box, where it is wrong; [J] what by one more on each missed one.

    The gains may be negative: official precision at a recall is interpolated, not enveloped.
    """
    of_found, of_true = np.zeros(len(boxes.found)), np.zeros(len(boxes.true))
    if not len(boxes.true):
        return of_found, of_true
    for hit, missed in zip(boxes.hit.T, boxes.missed.T, strict=True):
        of_found += gain_without(hit, len(boxes.true), protocol) / boxes.hit.shape[1]
        more = np.concatenate([[True], hit])
        gain = average_precision(more, len(boxes.true), protocol) - average_precision(hit, len(boxes.true), protocol)
        of_true[missed] += gain / boxes.hit.shape[1]
    return of_found, of_true


def average_precision(hit: np.ndarray, num_true: int, protocol: DetectionProtocol = CVPR_2019) -> float:
    """Official AP of ranked boxes.

    Args:
        hit: [K] bool, by falling score.
        num_true: J.
        protocol: says which recalls and precisions count.
    """
    if num_true == 0 or not hit.any():
        return 0.0
    right = np.cumsum(hit)
    precision = right / np.arange(1, len(hit) + 1)
    return float(_counted(np.interp(RECALLS, right / num_true, precision, right=0), protocol).mean())


def _counted(precision_R: np.ndarray, protocol: DetectionProtocol) -> np.ndarray:
    """Of the recalls that count, what their mean is AP of."""
    return np.clip(precision_R[protocol.first :] - protocol.min_precision, 0, None) / (1 - protocol.min_precision)


def gain_without(hit: np.ndarray, num_true: int, protocol: DetectionProtocol = CVPR_2019) -> np.ndarray:
    """[K] AP without each ranked box less AP; 0 for those that hit.

    The precision at a recall is interpolated between two ranks: the last one that has at most this recall, and the one
    behind it, a hit. A false positive before the first of them is before both, one behind it is behind both: so each
    recall gains the same from every false positive up to its rank.
    """
    if not hit.any():
        return np.zeros(len(hit))
    right = np.cumsum(hit)
    recall = right / num_true
    low = np.searchsorted(recall, RECALLS, side="right") - 1  # -1: before the first rank
    reached = low < len(hit) - 1
    exact = recall[low.clip(0)] == RECALLS  # at the last recall nothing is behind
    high = np.minimum(low + 1, len(hit) - 1)

    span = recall[high] - recall[low.clip(0)]
    part = np.divide(RECALLS - recall[low.clip(0)], span, out=np.zeros(len(RECALLS)), where=span > 0)

    def precision(fewer: int) -> np.ndarray:
        ranks = np.stack([low.clip(0), high]) + 1.0 - fewer
        at_high = right[high] / ranks[1].clip(1)
        # Where the only rank before the first hit is taken away, that hit's precision holds.
        at_low = np.where(ranks[0] > 0, right[low.clip(0)] / ranks[0].clip(1), at_high)
        between = at_low + part * (at_high - at_low)
        return np.where(reached, between, np.where(exact, at_low, 0))

    gain_R = np.zeros(len(RECALLS))
    gain_R[protocol.first :] = _counted(precision(1), protocol) - _counted(precision(0), protocol)
    gain_R /= len(RECALLS) - protocol.first
    of_rank = np.bincount(low.clip(0), gain_R * (low >= 0), minlength=len(hit))
    return np.where(hit, 0, of_rank[::-1].cumsum()[::-1])
