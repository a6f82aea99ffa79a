"""Precision, confidence and errors over recall, and what follows from them: counting alone, in compiled loops.

Letters: N scenes, L lanes (detections of a class at a threshold, best first), M their entries, H pairs, B resamples.

A lane is counted with its scenes taken any number of times, so that resampled scenes cost no new matching. A detection
of a scene that is taken twice stands twice in a row.
"""

from __future__ import annotations

import numba
import numpy as np

RECALLS = np.linspace(0, 1, 101)
NUM_ERRORS = 5


@numba.njit(cache=True)
def curves(
    pair: np.ndarray, score: np.ndarray, scene: np.ndarray, error: np.ndarray, times: np.ndarray, num_truth: int,
    recalls: np.ndarray, measured: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Of one lane, at each recall. Linear between detections; beyond the highest recall reached, 0.

    Args:
        pair: [M] row of the pair, -1 for a false alarm.
        score: [M] falling.
        scene: [M].
        error: [H, 5], NaN unknown.
        times: [N] how often each scene is taken.
        num_truth: truth boxes in the scenes so taken.
        recalls: [101] rising.
        measured: are errors wanted?

    Returns:
        [101] precision, [101] confidence, and [5, 101] the mean error of all pairs down to that confidence; without
        any pair 0, 0, and 1.
    """
    precision, confidence = np.zeros(len(recalls)), np.zeros(len(recalls))
    errors = np.ones((NUM_ERRORS, len(recalls)))
    hits = 0
    for i in range(len(pair)):
        if pair[i] >= 0:
            hits += times[scene[i]]
    if num_truth == 0 or hits == 0:
        return precision, confidence, errors

    hit_score, mean = np.empty(hits), np.empty((NUM_ERRORS if measured else 0, hits))
    total, known = np.zeros(NUM_ERRORS), np.zeros(NUM_ERRORS)
    right, wrong, at, begun = 0.0, 0.0, 0, False
    r0, p0, c0 = 0.0, 0.0, 0.0  # of the detection before
    for i in range(len(pair)):
        for _ in range(times[scene[i]]):
            if pair[i] >= 0:
                for e in range(len(mean)):
                    value = error[pair[i], e]
                    if not np.isnan(value):
                        total[e] += value
                        known[e] += 1.0
                    mean[e, int(right)] = total[e] / known[e] if known[e] > 0 else 0.0
                hit_score[int(right)] = score[i]
                right += 1.0
            else:
                wrong += 1.0
            r, p, c = right / num_truth, right / (wrong + right), score[i]
            if r > r0 or not begun:
                while at < len(recalls) and recalls[at] < r:
                    x = recalls[at]
                    if not begun:
                        precision[at], confidence[at] = p, c
                    elif x == r0:
                        precision[at], confidence[at] = p0, c0
                    else:
                        precision[at] = (p - p0) / (r - r0) * (x - r0) + p0
                        confidence[at] = (c - c0) / (r - r0) * (x - r0) + c0
                    at += 1
            r0, p0, c0, begun = r, p, c, True
    while at < len(recalls) and recalls[at] <= r0:
        precision[at], confidence[at] = p0, c0
        at += 1

    for e in range(len(mean)):
        if known[e] > 0:
            for k in range(len(recalls)):
                errors[e, k] = _at_confidence(confidence[k], hit_score, mean[e])
    return precision, confidence, errors


@numba.njit(cache=True)
def _at_confidence(x: float, score: np.ndarray, mean: np.ndarray) -> float:
    """``mean`` at a confidence: linear between the falling ``score``; of equal ones the first counts."""
    low, high = 0, len(score)
    while low < high:  # the first score that is not above x
        middle = (low + high) // 2
        if score[middle] <= x:
            high = middle
        else:
            low = middle + 1
    if low == len(score):
        return mean[-1]
    if low == 0 or score[low] == x:
        return mean[low]
    return (mean[low - 1] - mean[low]) / (score[low - 1] - score[low]) * (x - score[low]) + mean[low]


@numba.njit(cache=True)
def _average(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


@numba.njit(cache=True)
def count_lanes(
    start: np.ndarray, pair: np.ndarray, score: np.ndarray, scene: np.ndarray, error: np.ndarray,
    truth: np.ndarray, times: np.ndarray, measured: np.ndarray, recalls: np.ndarray, first: int, min_precision: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Average precision and errors of every lane, in every resample.

    Args:
        start: [L + 1] where lanes begin among the entries.
        pair: [M] row of the pair, -1 for a false alarm.
        score: [M].
        scene: [M].
        error: [H, 5].
        truth: [N, L] truth boxes of each scene.
        times: [B, N] how often each scene is taken.
        measured: [L] bool: are errors wanted?
        recalls: [101].
        first: of the recalls that count.
        min_precision: that counts as none.

    Returns:
        [B, L] average precision, [B, L, 5] errors: the mean over recalls from ``first`` to the highest reached, 1 where
        that is not reached.
    """
    precisions = np.zeros((len(times), len(measured)))
    errors = np.ones((len(times), len(measured), NUM_ERRORS))
    for b in range(len(times)):
        for lane in range(len(measured)):
            num_truth = 0
            for n in range(times.shape[1]):
                num_truth += times[b, n] * truth[n, lane]
            part = slice(start[lane], start[lane + 1])
            precision, confidence, mean = curves(
                pair[part], score[part], scene[part], error, times[b], num_truth, recalls, measured[lane]
            )
            above = np.maximum(precision[first:] - min_precision, 0.0)
            precisions[b, lane] = _average(above) / (1.0 - min_precision)
            last = 0  # the highest recall reached
            for k in range(len(recalls)):
                if confidence[k] != 0:
                    last = k
            if measured[lane] and last >= first:
                for e in range(NUM_ERRORS):
                    errors[b, lane, e] = _average(mean[e, first : last + 1])
    return precisions, errors
