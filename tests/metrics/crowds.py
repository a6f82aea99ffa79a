"""Small random splits with truth and detections as records, for the tests of detection metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.columns import Truth
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

Split = dict[str, list[dict[str, Any]]]


def crowd(seed: int, spread: float, levels: int | None, samples: int = 6, boxes: int = 40) -> tuple[Split, Split, dict]:
    """Many boxes around their truth, some lost, some doubled.

    Args:
        seed: of the generator.
        spread: [m] of detections around their truth.
        levels: that scores have; None: all are different.
        samples: of the split.
        boxes: of truth in each.

    Returns:
        Truth, results and ego position by token; the barrier, which is the last class, is not in the truth.
    """
    rng = np.random.default_rng(seed)
    tokens = [f"sample-{i}" for i in range(samples)]
    truth: Split = {token: [] for token in tokens}
    results: Split = {token: [] for token in tokens}
    for token in tokens:
        for _ in range(boxes):
            center = rng.normal(0, 20, 3) * (1, 1, 0.05)
            name = DETECTION_CLASSES[int(rng.integers(0, 9))]
            box = {
                "sample_token": token, "translation": center.tolist(), "size": rng.uniform(0.5, 4, 3).tolist(),
                "rotation": rng.normal(size=4).tolist(), "detection_name": name,
                "velocity": rng.normal(0, 3, 2).tolist() if rng.random() < 0.9 else [math.nan, math.nan],
                "attribute_name": ("", *ATTRIBUTES)[int(rng.integers(0, 9))],
            }  # fmt: skip
            counted = {
                "num_pts": int(rng.integers(0, 200) ** 1.2 * (rng.random() < 0.9)),
                "visibility": int(rng.integers(0, 5)),
            }
            truth[token].append(box | counted)
            for _ in range(int(rng.integers(0, 3))):
                score = float(rng.random()) if levels is None else float(rng.integers(0, levels) / levels)
                found = {
                    "translation": (center + rng.normal(0, spread, 3)).tolist(), "detection_score": score,
                    "size": (np.array(box["size"]) * rng.uniform(0.7, 1.3, 3)).tolist(),
                    "detection_name": name if rng.random() < 0.9 else "barrier",
                    "velocity": rng.normal(0, 3, 2).tolist() if rng.random() < 0.9 else [math.nan, math.nan],
                }  # fmt: skip
                results[token].append(box | found)
    return truth, results, {token: [1.0, -2.0, 0.5] for token in tokens}


def moved_truth(truth: Truth, spread: float, kept: float = 1.0, seed: int = 0) -> Split:
    """The boxes of a truth as the records of somebody who found them.

    Args:
        truth: of a split.
        spread: [m] of detections around their truth.
        kept: part of the boxes that are found.
        seed: of the generator.
    """
    rng, boxes = np.random.default_rng(seed), truth.boxes
    results: Split = {token: [] for token in truth.samples.tokens}
    for k in np.flatnonzero(rng.random(len(boxes)) < kept):
        token = truth.samples.tokens[boxes.sample[k]]
        record = {
            "sample_token": token, "translation": (boxes.center[k] + rng.normal(0, spread, 3)).tolist(),
            "size": boxes.size[k, [1, 0, 2]].tolist(), "rotation": quaternion_from_yaw(boxes.yaw[k]).tolist(),
            "velocity": [1.0, 0.0], "detection_name": DETECTION_CLASSES[boxes.label[k]],
            "detection_score": float(np.float32(rng.beta(2, 1))),
            "attribute_name": ("", *ATTRIBUTES)[boxes.attribute[k] + 1],
        }  # fmt: skip
        results[token].append(record)
    return results
