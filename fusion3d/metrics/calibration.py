"""Does a score say how often it is right? Reliability, its expected error, and temperature scaling (Guo et al., 2017).

A box is right when it is a true positive of the official matching within 2 m (``matching.py``). All boxes that are
scored count, those with low scores too. Letters: K boxes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 15  # of equal width, as in Guo et al.
BOUNDS = (0.05, 20.0)  # of a temperature; where all boxes are right, or wrong, the likeliest one is at infinity or 0
_EPSILON = 1e-7  # scores closer to 0 or 1 are taken as this close, where a temperature is fitted


def reliability(score: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """The reliability diagram and its expected calibration error (ECE).

    Args:
        score: [K] float in [0, 1].
        right: [K] bool.
        bins: of equal width; a score on an edge is in the upper one, 1 in the last.

    Returns:
        ``ECE``: mean over the boxes of the gap between a bin's mean score and its share of right boxes, NaN where
        there is no box; ``count``, ``confidence`` (mean score) and ``precision`` (share that is right), a list of
        ``bins`` numbers each, NaN where a bin is empty; ``right``: number of them.

    Raises:
        ValueError: a score outside [0, 1], or not one ``right`` for each.
    """
    score, right = _check(score, right)
    index = np.minimum((score * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, score, bins) / count
        precision = np.bincount(index, right, bins) / count
    gap = np.abs(confidence - precision)[count > 0]
    return {
        "ECE": float((gap * count[count > 0]).sum() / len(score)) if len(score) else float("nan"),
        "count": count.tolist(),
        "confidence": confidence.tolist(),
        "precision": precision.tolist(),
        "right": int(right.sum()),
    }


def fit_temperature(score: np.ndarray, right: np.ndarray) -> float:
    """The temperature T that makes sigmoid(logit(score) / T) likeliest to be right; 1 without any box.

    The negative log-likelihood is convex in 1 / T, so the root of its derivative is found by halving.

    Args:
        score: [K] float in [0, 1].
        right: [K] bool.

    Raises:
        ValueError: as in ``reliability``.
    """
    score, right = _check(score, right)
    if not len(score):
        return 1.0
    logit = _logit(np.clip(score, _EPSILON, 1 - _EPSILON))
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(100):
        middle = 0.5 * (low + high)
        slope = float((logit * (_sigmoid(middle * logit) - right)).sum())
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 2 / (low + high)


def apply_temperature(score: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    """sigmoid(logit(score) / temperature), in float64, in which no two scores of a network become equal.

    It rises with the score, so that the order of a class's boxes and its AP stay; of 0 and 1 nothing else is made.
    """
    return _sigmoid(_logit(np.asarray(score, dtype=np.float64)) / temperature)


def _check(score: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    score, right = np.asarray(score, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if score.shape != right.shape or score.ndim != 1:
        raise ValueError(f"scores have shape {score.shape} and what is right {right.shape}; expected [K] both")
    wrong = ~((score >= 0) & (score <= 1))
    if wrong.any():
        raise ValueError(f"score {score[wrong][0]}; expected a confidence in [0, 1]")
    return score, right


def _logit(score: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(score) - np.log1p(-score)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logit))
