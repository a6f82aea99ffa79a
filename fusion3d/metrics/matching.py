"""Which boxes are right: the official nuScenes filters and matching, box by box instead of summed up.

Letters: K found boxes, J true boxes, of one class in all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion3d.errors import Fusion3DError
from fusion3d.geometry import rotation_from_quaternion
from fusion3d.metrics.detection import Truth
from fusion3d.types import DETECTION_CLASSES

# Of the configuration detection_cvpr_2019.
CLASS_RANGE = dict(zip(DETECTION_CLASSES, (50.0,) * 5 + (40.0,) * 3 + (30.0,) * 2, strict=True))  # [m] from the ego
DISTANCES = (0.5, 1.0, 2.0, 4.0)  # [m] of a match, for the average precision
RIGHT_WITHIN = 2.0  # [m] of a match, for the errors of true positives
_ON_RACKS = ("bicycle", "motorcycle")


@dataclass(frozen=True)
class Side:
    """Boxes of one class, found or true, in the order of the samples."""

    sample: np.ndarray  # [K] int64, which of the tokens
    row: np.ndarray  # [K] int64, which box of the sample, before the filters
    xy: np.ndarray  # [K, 2] float64, global [m]
    score: np.ndarray  # [K] float64; of true ones -1

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class ClassBoxes:
    """What is scored of one class, after the filters."""

    tokens: tuple[str, ...]
    found: Side
    true: Side


def boxes_by_class(
    truths: Mapping[str, Truth], results: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, ClassBoxes]:
    """The boxes that the official evaluation scores, by class: within its range, with points, in no bicycle rack.

    Args:
        truths: by sample token.
        results: by sample token, boxes as in a submission; every token of ``truths`` must be there.

    Raises:
        Fusion3DError: samples are missing.
    """
    missing = [token for token in truths if token not in results]
    if missing:
        raise Fusion3DError(
            f"the results lack {len(missing)} of {len(truths)} samples, first {missing[0]}; expected every sample of "
            "the split, with an empty list where nothing was found"
        )
    tokens = tuple(truths)
    sides = [
        _sides(truths, {token: boxes[token] for token in tokens})
        for boxes in (results, {token: truth.boxes for token, truth in truths.items()})
    ]
    return {name: ClassBoxes(tokens, *(side[name] for side in sides)) for name in DETECTION_CLASSES}


def match(boxes: ClassBoxes, distance: float) -> np.ndarray:
    """[K] int64: the true box that each found one takes, -1 where it is a false positive.

    As the official evaluation: by falling score over all samples (equal ones: the last first), each box takes the
    nearest true one of its sample that none took before, if it is nearer than ``distance`` [m] on the ground.
    """
    found, true = boxes.found, boxes.true
    taken = np.full(len(found), -1, dtype=np.int64)
    free = np.ones(len(true), dtype=bool)
    start = np.searchsorted(true.sample, np.arange(len(boxes.tokens) + 1))
    for k in ranking(found):
        first, last = start[found.sample[k]], start[found.sample[k] + 1]
        if first == last:
            continue
        gap = np.sqrt(((true.xy[first:last] - found.xy[k]) ** 2).sum(1))
        gap[~free[first:last]] = np.inf
        nearest = int(gap.argmin())
        if gap[nearest] < distance:
            taken[k] = first + nearest
            free[first + nearest] = False
    return taken


def ranking(found: Side) -> np.ndarray:
    """[K] int64 found boxes by falling score, of equal ones the last first."""
    return np.lexsort((np.arange(len(found)), found.score))[::-1]


def _sides(truths: Mapping[str, Truth], boxes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Side]:
    columns: dict[str, list[tuple[int, int, float, float, float]]] = {name: [] for name in DETECTION_CLASSES}
    for number, (token, of_sample) in enumerate(boxes.items()):
        truth = truths[token]
        for row, box in enumerate(of_sample):
            name, (x, y, *_) = box["detection_name"], box["translation"]
            near = np.hypot(x - truth.ego[0], y - truth.ego[1]) < CLASS_RANGE[name]
            racked = name in _ON_RACKS and any(_inside(box["translation"], rack) for rack in truth.bicycle_racks)
            if near and box.get("num_pts", -1) != 0 and not racked:
                columns[name].append((number, row, x, y, box.get("detection_score", -1.0)))
    sides = {}
    for name, rows in columns.items():
        table = np.array(rows, dtype=np.float64).reshape(-1, 5)
        sides[name] = Side(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2:4], table[:, 4])
    return sides


def _inside(point: Sequence[float], rack: Mapping[str, Any]) -> bool:
    offset = rotation_from_quaternion(np.array(rack["rotation"], dtype=np.float64)).T @ (
        np.array(point, dtype=np.float64) - rack["translation"]
    )
    width, length, height = rack["size"]
    return bool((np.abs(offset) <= np.array([length, width, height]) / 2).all())
