"""Precision, confidence and errors over recall, and what follows from them: counting alone, in compiled loops.

Letters: N scenes, L lanes (detections of a class at a threshold, best first), M their entries, I of them hits,
H pairs, B resamples.

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
    hit: np.ndarray, pair: np.ndarray, score: np.ndarray, scene: np.ndarray, error: np.ndarray, times: np.ndarray,
    num_truth: int, recalls: np.ndarray, measured: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Of one lane, at each recall. Linear between detections; beyond the highest recall reached, 0.

    Args:
        hit: [I] which of the detections found something, rising; the others are false alarms.
        pair: [I] row of the pair of each.
        score: [M] falling.
        scene: [M] unsigned.
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
    hit_score, mean = np.empty(num_truth), np.empty((NUM_ERRORS if measured else 0, num_truth))
    total, known = np.zeros(NUM_ERRORS), np.zeros(NUM_ERRORS)
    right, wrong, at, after = 0, 0, 0, 0
    for h in range(len(hit)):
        i = hit[h]
        for j in range(after, i):
            wrong += times[scene[j]]
        after = i + 1
        for copy in range(times[scene[i]]):
            for e in range(len(mean)):
                value = error[pair[h], e]
                if not np.isnan(value):
                    total[e] += value
                    known[e] += 1.0
                mean[e, right] = total[e] / known[e] if known[e] > 0 else 0.0
            hit_score[right] = score[i]
            r = (right + 1) / num_truth
            if at < len(recalls) and recalls[at] < r:
                p, c = (right + 1) / (right + 1 + wrong), score[i]
                if right + wrong == 0:  # nothing is before: as at the first
                    r0, p0, c0 = r, p, c
                else:
                    r0, p0 = right / num_truth, right / (right + wrong)
                    c0 = c if copy else score[_last_taken(times, scene, i)]
                while at < len(recalls) and recalls[at] < r:
                    x = recalls[at]
                    precision[at], confidence[at] = p0, c0
                    if x > r0:
                        precision[at] = (p - p0) / (r - r0) * (x - r0) + p0
                        confidence[at] = (c - c0) / (r - r0) * (x - r0) + c0
                    at += 1
            right += 1
    if right == 0:
        return precision, confidence, errors
    for j in range(after, len(scene)):
        wrong += times[scene[j]]
    while at < len(recalls) and recalls[at] <= right / num_truth:
        precision[at], confidence[at] = right / (right + wrong), score[_last_taken(times, scene, len(scene))]
        at += 1
    if measured:
        for k in range(len(recalls)):
            _read(confidence[k], hit_score[:right], mean, errors[:, k])
        for e in range(NUM_ERRORS):
            if known[e] == 0:
                errors[e] = 1.0
    return precision, confidence, errors


@numba.njit(cache=True)
def _last_taken(times: np.ndarray, scene: np.ndarray, end: int) -> int:
    """The last detection before ``end`` whose scene is taken; there must be one."""
    i = end - 1
    while times[scene[i]] == 0:
        i -= 1
    return i


@numba.njit(cache=True)
def _read(x: float, score: np.ndarray, mean: np.ndarray, out: np.ndarray) -> None:
    """Write every ``mean`` at a confidence: linear between the falling ``score``; of equal ones the first counts."""
    low, high = 0, len(score)
    while low < high:  # the first score that is not above x
        middle = (low + high) // 2
        if score[middle] <= x:
            high = middle
        else:
            low = middle + 1
    for e in range(len(mean)):
        if low == len(score):
            out[e] = mean[e, low - 1]
        elif low == 0 or score[low] == x:
            out[e] = mean[e, low]
        else:
            slope = (mean[e, low - 1] - mean[e, low]) / (score[low - 1] - score[low])
            out[e] = slope * (x - score[low]) + mean[e, low]


@numba.njit(cache=True)
def _average(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


@numba.njit(cache=True)
def count_lanes(
    start: np.ndarray, first_hit: np.ndarray, hit: np.ndarray, pair: np.ndarray, score: np.ndarray, scene: np.ndarray,
    error: np.ndarray, truth: np.ndarray, times: np.ndarray, measured: np.ndarray, recalls: np.ndarray, first: int,
    min_precision: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Average precision and errors of every lane, in every resample.

    Args:
        start: [L + 1] where lanes begin among the entries.
        first_hit: [L + 1] where they begin among the hits.
        hit: [I] those of the entries, counted from the begin of their lane, that found something.
        pair: [I] row of the pair of each.
        score: [M].
        scene: [M] unsigned.
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
    for lane in range(len(measured)):
        part, hits = slice(start[lane], start[lane + 1]), slice(first_hit[lane], first_hit[lane + 1])
        for b in range(len(times)):
            num_truth = 0
            for n in range(times.shape[1]):
                num_truth += times[b, n] * truth[n, lane]
            precision, confidence, mean = curves(
                hit[hits], pair[hits], score[part], scene[part], error, times[b], num_truth, recalls, measured[lane]
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
