"""Which boxes are scored: the benchmark's three filters."""

from __future__ import annotations

import numpy as np

from fusion3d.metrics.columns import BoxColumns, Racks, Samples, Truth
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.types import DETECTION_CLASSES

CYCLES = tuple(DETECTION_CLASSES.index(name) for name in ("bicycle", "motorcycle"))


def ego_offset(boxes: BoxColumns, samples: Samples) -> np.ndarray:
    """[K, 2] float64: from the ego to each centre, in global axes [m]."""
    return boxes.center[:, :2] - samples.ego[boxes.sample]


def scored(boxes: BoxColumns, truth: Truth, protocol: DetectionProtocol) -> np.ndarray:
    """[K] bool: the boxes that count.

    Nearer than the range of their class in the plane; not without any LiDAR and radar point (predictions have -1);
    and, of bicycles and motorcycles, not with the centre in a bicycle rack, faces included.
    """
    reach = np.array([protocol.class_range[name] for name in DETECTION_CLASSES], dtype=np.float64)[boxes.label]
    keep = within(ego_offset(boxes, truth.samples), reach) & (boxes.num_points != 0)
    keep[in_racks(boxes.sample, boxes.center, np.flatnonzero(keep & np.isin(boxes.label, CYCLES)), truth.racks)] = False
    return keep


def within(offset: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """[K] bool: is an offset [K, 2] shorter than ``reach`` [K]?"""
    return np.sqrt(offset[:, 0] * offset[:, 0] + offset[:, 1] * offset[:, 1]) < reach


def in_racks(sample: np.ndarray, center: np.ndarray, rows: np.ndarray, racks: Racks) -> list[int]:
    """The boxes that lie in a bicycle rack of their sample, faces included.

    Args:
        sample: [K] int64.
        center: [K, 3] float64 [m].
        rows: of the boxes to look at.
        racks: in the same frame.
    """
    rows = rows[np.argsort(sample[rows], kind="stable")]
    first = np.searchsorted(sample[rows], racks.sample)
    last = np.searchsorted(sample[rows], racks.sample, side="right")
    inside: set[int] = set()
    for rack in np.flatnonzero(last > first):
        chosen = rows[first[rack] : last[rack]]
        away = np.linalg.norm(center[chosen] - racks.center[rack], axis=1)
        chosen = chosen[away <= 0.51 * np.linalg.norm(racks.size[rack])]  # the others are outside at first sight
        corner, edges = _frame(racks.center[rack], racks.size[rack], racks.rotation[rack])
        inside.update(row for row in chosen.tolist() if _inside(center[row], corner, edges))
    return sorted(inside)


# The arithmetic below is the devkit's, product by product: a centre on a face is inside there exactly when it is here.


def _frame(center: np.ndarray, size: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """A corner of a box [3], and its three edges from there."""
    norm = np.dot(rotation, rotation)
    w, x, y, z = rotation if abs(1.0 - norm) < 1e-14 or norm == 0 else rotation / np.sqrt(norm)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    right = np.array([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]])
    turn = np.dot(left, right.conj().transpose())[1:][:, 1:]
    length, width, height = size
    offsets = np.vstack(
        (
            length / 2 * np.array([1, 1, 1, 1, -1, -1, -1, -1]),
            width / 2 * np.array([1, -1, -1, 1, 1, -1, -1, 1]),
            height / 2 * np.array([1, 1, -1, -1, 1, 1, -1, -1]),
        )
    )
    corners = np.dot(turn, offsets) + center[:, None]
    return corners[:, 0], [corners[:, other] - corners[:, 0] for other in (4, 1, 3)]


def _inside(point: np.ndarray, corner: np.ndarray, edges: list[np.ndarray]) -> bool:
    offset = point[:, None] - corner.reshape(-1, 1)
    return all(bool(0 <= np.dot(edge, offset)[0] <= np.dot(edge, edge)) for edge in edges)
