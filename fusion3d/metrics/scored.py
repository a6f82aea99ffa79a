"""The boxes that count, and which are right: the official nuScenes filters and matching, box by box.

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
    """Boxes of one class, found or true."""

    sample: np.ndarray  # [K] int64, which of the tokens
    xy: np.ndarray  # [K, 2] float64, global [m]
    score: np.ndarray  # [K] float64; of true ones -1

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, keep: np.ndarray) -> Side:
        """The boxes of an index array."""
        return Side(self.sample[keep], self.xy[keep], self.score[keep])


@dataclass(frozen=True)
class ClassBoxes:
    """What is scored of one class, after the filters."""

    tokens: tuple[str, ...]  # of the samples
    found: Side  # K, by falling score over all samples; of equal ones the last first
    true: Side  # J, sample by sample
    taken: np.ndarray  # [K, 4] int64, which true box each found one takes at each of DISTANCES; -1: a false positive

    @property
    def right(self) -> np.ndarray:
        """[K] bool: true positives, as errors are taken of."""
        return self.taken[:, DISTANCES.index(RIGHT_WITHIN)] >= 0


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
    found = _sides(truths, {token: results[token] for token in tokens})
    true = _sides(truths, {token: truth.boxes for token, truth in truths.items()})
    classes = {}
    for name in DETECTION_CLASSES:
        best_first = found[name][np.lexsort((np.arange(len(found[name])), found[name].score))[::-1]]
        taken = np.stack([_match(best_first, true[name], len(tokens), at) for at in DISTANCES], axis=1)
        classes[name] = ClassBoxes(tokens, best_first, true[name], taken)
    return classes


def _match(found: Side, true: Side, samples: int, distance: float) -> np.ndarray:
    """[K] int64: each box, best first, takes the nearest true one of its sample that none took before, if it is nearer
    than ``distance`` [m] on the ground; -1 otherwise.
    """
    taken = np.full(len(found), -1, dtype=np.int64)
    free = np.ones(len(true), dtype=bool)
    start = np.searchsorted(true.sample, np.arange(samples + 1))
    for k in range(len(found)):
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


def _sides(truths: Mapping[str, Truth], boxes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Side]:
    columns: dict[str, list[tuple[int, float, float, float]]] = {name: [] for name in DETECTION_CLASSES}
    for number, (token, of_sample) in enumerate(boxes.items()):
        truth = truths[token]
        for box in of_sample:
            name, (x, y, *_) = box["detection_name"], box["translation"]
            near = np.hypot(x - truth.ego[0], y - truth.ego[1]) < CLASS_RANGE[name]
            racked = name in _ON_RACKS and any(_inside(box["translation"], rack) for rack in truth.bicycle_racks)
            if near and box.get("num_pts", -1) != 0 and not racked:
                columns[name].append((number, x, y, box.get("detection_score", -1.0)))
    sides = {}
    for name, rows in columns.items():
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        sides[name] = Side(table[:, 0].astype(np.int64), table[:, 1:3], table[:, 3])
    return sides


def _inside(point: Sequence[float], rack: Mapping[str, Any]) -> bool:
    offset = rotation_from_quaternion(np.array(rack["rotation"], dtype=np.float64)).T @ (
        np.array(point, dtype=np.float64) - rack["translation"]
    )
    width, length, height = rack["size"]
    return bool((np.abs(offset) <= np.array([length, width, height]) / 2).all())
