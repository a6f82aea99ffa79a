"""Rectangles seen from above: do two overlap, and how far apart are they? Exact, by separating axes.

A rectangle is x, y, length, width, yaw [m, rad]: centre, sizes along and across its heading.
"""

from __future__ import annotations

import numpy as np


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Do pairs of rectangles overlap? Touching is not overlapping.

    Args:
        first, second: [..., 5]; they broadcast.

    Returns:
        [...] bool.
    """
    return depth(first, second) > 0


def depth(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far two rectangles must at least be moved to come apart [m]; 0 or less where they are.

    Args:
        first, second: [..., 5]; they broadcast.
    """
    across, along = second[..., 0] - first[..., 0], second[..., 1] - first[..., 1]
    turn = second[..., 4] - first[..., 4]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    least = None
    for box, other in ((first, second), (second, first)):
        c, s = np.cos(box[..., 4]), np.sin(box[..., 4])
        length, width = other[..., 2], other[..., 3]
        for offset, own, shadow in (
            (across * c + along * s, box[..., 2], length * cos + width * sin),
            (along * c - across * s, box[..., 3], length * sin + width * cos),
        ):
            inside = (own + shadow) / 2 - np.abs(offset)
            least = inside if least is None else np.minimum(least, inside)
    assert least is not None
    return least


def clearance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The distance between two rectangles [m]; where they overlap, minus their depth.

    Of two convex shapes that are apart, a corner of one is nearest to the other.

    Args:
        first, second: [..., 5]; they broadcast.
    """
    inside = depth(first, second)
    apart = np.minimum(_from_corners(first, second), _from_corners(second, first))
    return np.where(inside > 0, -inside, apart)


def corners(box: np.ndarray) -> np.ndarray:
    """[..., 5] rectangles to [..., 4, 2] corners: front left, front right, rear right, rear left."""
    c, s = np.cos(box[..., 4, None]), np.sin(box[..., 4, None])
    x = box[..., 2, None] * np.array([0.5, 0.5, -0.5, -0.5])
    y = box[..., 3, None] * np.array([0.5, -0.5, -0.5, 0.5])
    return np.stack([box[..., 0, None] + c * x - s * y, box[..., 1, None] + s * x + c * y], axis=-1)


def reach(box: np.ndarray) -> np.ndarray:
    """[...] from the centre to a corner [m]."""
    return np.hypot(box[..., 2], box[..., 3]) / 2


def _from_corners(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distance of the nearest corner of ``first`` to the rectangle ``second``."""
    offset = corners(first) - second[..., None, :2]
    c, s = np.cos(second[..., 4, None]), np.sin(second[..., 4, None])
    x = np.abs(offset[..., 0] * c + offset[..., 1] * s) - second[..., 2, None] / 2
    y = np.abs(offset[..., 1] * c - offset[..., 0] * s) - second[..., 3, None] / 2
    return np.hypot(np.maximum(x, 0), np.maximum(y, 0)).min(axis=-1)
