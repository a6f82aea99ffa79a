"""Where a sample's map says one may drive, point by point and exactly, and on which lane one is.

By polygons where there are any (``vector_map``), or by the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from fusion3d.data.lanes import Lanes, open_lanes
from fusion3d.data.maps import mask_file, on_mask, vector_file
from fusion3d.data.nuscenes import Tables
from fusion3d.data.vector_map import VectorMap, open_map
from fusion3d.types import MAP_CLASSES

_LAYER = MAP_CLASSES.index("drivable_area")


class Area:
    """Polygons of a map.

    Args:
        rings: [V, 2] each, global [m].
        shape: [R] ascending, the same for all of one polygon: inside of it is what is inside of an odd number of them.
    """

    def __init__(self, rings: Sequence[np.ndarray], shape: np.ndarray) -> None:
        edges = [np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings]
        self.edge = np.concatenate([np.zeros((0, 4)), *edges])  # from x, y to x, y
        self.shape = np.repeat(np.asarray(shape, dtype=np.int64), [len(edge) for edge in edges])
        self.low = np.minimum(self.edge[:, 1], self.edge[:, 3])
        self.high = np.maximum(self.edge[:, 1], self.edge[:, 3])
        self.left = np.minimum(self.edge[:, 0], self.edge[:, 2])
        self.right = np.maximum(self.edge[:, 0], self.edge[:, 2])
        # [E] where the whole shape of an edge begins and ends along x.
        first = np.flatnonzero(np.diff(self.shape, prepend=-1))
        count = np.diff(first, append=len(self.shape))
        self.shape_left, self.shape_right = (
            np.repeat(bound.reduceat(of, first), count) if len(first) else of
            for bound, of in ((np.minimum, self.left), (np.maximum, self.right))
        )

    def contains(self, xy: np.ndarray) -> np.ndarray:
        """[M, 2] global positions [m] to [M] bool: is any of the polygons there?"""
        return np.asarray(self.within(xy).any(axis=1))

    def within(self, xy: np.ndarray) -> np.ndarray:
        """[M, 2] global positions [m] to [M, K] bool: which of the K polygons around are there, in their order?"""
        if not len(xy):
            return np.zeros((0, 0), dtype=bool)
        (left, bottom), (right, top) = np.fmin.reduce(xy), np.fmax.reduce(xy)  # a position not known is nowhere
        # A ray to the right cuts an edge that begins at or below it and ends above, or the other way round.
        near = (self.low <= top) & (self.high > bottom) & (self.right > left)
        near = np.flatnonzero(near & (self.shape_left <= right) & (self.shape_right >= left))
        x0, y0, x1, y1 = self.edge[near].T
        y = xy[:, 1, None]
        cuts = (y0 <= y) != (y1 <= y)
        at = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1, y1 - y0)
        cuts &= at > xy[:, 0, None]
        # Edges of one shape follow each other: an odd number of cuts with any of them is inside.
        first = np.flatnonzero(np.diff(self.shape[near], prepend=-1))
        if not len(first):
            return np.zeros((len(xy), 0), dtype=bool)
        return np.add.reduceat(cuts, first, axis=1, dtype=np.int64) % 2 == 1


def mask_of(tables: Tables, sample: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Of global positions [M, 2], whether a car may be there as the mask of the place says; None without one.

    nuScenes' masks hold the sidewalks too: ``area_of``, where there is one, knows better.

    Raises:
        DataError: the map cannot be read.
    """
    mask = mask_file(tables, sample)
    return None if mask is None or not mask.is_file() else lambda xy: on_mask(mask, xy)


def area_of(tables: Tables, sample: int) -> Area | None:
    """The drivable polygons of a sample's place; None where there are none.

    Raises:
        DataError: the map cannot be read.
    """
    path = vector_file(tables, sample)
    if path is None:
        return None
    shapes = open_map(path)
    return drivable_area(shapes) if shapes.known[_LAYER] else None


def lanes_of(tables: Tables, sample: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Of global positions [M, 2], on which lanes they are, [M, K] bool of those around; None where none are known.

    Raises:
        DataError: the map cannot be read.
    """
    path = vector_file(tables, sample)
    lanes = None if path is None else open_lanes(path)
    return None if lanes is None else _lane_area(lanes).within


@lru_cache(maxsize=8)
def _lane_area(lanes: Lanes) -> Area:
    return Area(np.split(lanes.xy, lanes.ring[1:-1]) if len(lanes.lane) else [], lanes.lane)


@lru_cache(maxsize=8)
def drivable_area(shapes: VectorMap) -> Area:
    """The drivable polygons of a map."""
    rings = np.flatnonzero((shapes.layer == _LAYER) & shapes.is_area)
    return Area([shapes.xy[shapes.ring[ring] : shapes.ring[ring + 1]] for ring in rings], shapes.shape[rings])
