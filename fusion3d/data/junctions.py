"""Intersections in the nuScenes map expansion: the road segments that are said to be one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fusion3d.data.drivable import Area
from fusion3d.data.expansion import Shapes, open_expansion, packed
from fusion3d.data.maps import vector_file
from fusion3d.data.nuscenes import Tables


@dataclass(frozen=True, eq=False)
class Junctions:
    """Polygons in global metres: V vertices, R rings."""

    xy: np.ndarray  # [V, 2] float64
    ring: np.ndarray  # [R + 1] int64: ring r is xy[ring[r] : ring[r + 1]]
    shape: np.ndarray  # [R] int64, ascending: rings of one polygon have the same
    known: np.ndarray  # [] bool: has the file road segments at all?

    @staticmethod
    def read(content: dict[str, Any]) -> Junctions:
        """From a file's JSON."""
        shapes, segments = Shapes(content), content.get("road_segment", [])
        chosen = [row for row in segments if row["is_intersection"]]
        rings = [(ring, number) for number, row in enumerate(chosen) for ring in shapes.rings(row["polygon_token"])]
        xy, start = packed([ring for ring, _ in rings])
        return Junctions(
            xy=xy,
            ring=start,
            shape=np.array([number for _, number in rings], dtype=np.int64),
            known=np.array(len(segments) > 0),
        )


def junctions_of(tables: Tables, sample: int) -> Callable[[np.ndarray], np.ndarray] | None:
    """Of global positions [M, 2], whether they are in an intersection, [M] bool; None where no road segment is known.

    Raises:
        DataError: the map cannot be read.
    """
    path = vector_file(tables, sample)
    junctions = None if path is None else open_expansion(path, Junctions)
    return _area(junctions).contains if junctions is not None and junctions.known else None


@lru_cache(maxsize=8)
def _area(junctions: Junctions) -> Area:
    return Area(np.split(junctions.xy, junctions.ring[1:-1]) if len(junctions.shape) else [], junctions.shape)
