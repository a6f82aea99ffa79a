"""Where the road ends, as BEV-Planner's evaluation has it: lines around the union of road segments and lanes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from fusion3d.data.expansion import Shapes, open_expansion, packed
from fusion3d.data.maps import vector_file
from fusion3d.data.nuscenes import Tables
from fusion3d.geometry import yaw_of

POINTS = 20  # of a line, however long
REACH = np.array([51.0, 24.8])  # [m] ahead and behind, to each side: a patch of 102.4 x 50 m, without a rim of 0.2 m
_LAYERS = ("road_segment", "lane")


@dataclass(frozen=True, eq=False)
class RoadEdge:
    """The rings of the union's edge in global metres: V vertices, R rings."""

    xy: np.ndarray  # [V, 2] float64
    ring: np.ndarray  # [R + 1] int64: ring r is xy[ring[r] : ring[r + 1]], its first vertex again at its end
    known: np.ndarray  # [] bool: has the file road segments and lanes at all?

    @staticmethod
    def read(content: dict[str, Any]) -> RoadEdge:
        """From a file's JSON, which holds all of its layers in one place."""
        shapes = Shapes(content)
        known = all(content.get(layer) for layer in _LAYERS)
        rows = [row for layer in _LAYERS for row in content[layer]] if known else []
        return RoadEdge.around([shapes.rings(row["polygon_token"]) for row in rows])

    @staticmethod
    def around(polygons: list[list[np.ndarray]]) -> RoadEdge:
        """Of polygons, each its outline [V, 2] and those of its holes; those that cross themselves do not count."""
        shapely: Any = import_module("shapely")
        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons if len(rings[0]) > 2]
        union = shapely.union_all([shape for shape in shapes if shape.is_valid])
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(union))]
        return RoadEdge(*packed(rings), known=np.array(len(polygons) > 0))

    def lines(self, global_from_ego: np.ndarray) -> np.ndarray:
        """[L, POINTS, 2] lines in ego within ``REACH``, as many points on each, evenly along it.

        A gap of a millimetre between polygons is a line of its own, as there, or is none: that depends on rounding.
        Where a ring that is wholly within begins is the geometry library's choice, and so where its points are.

        Args:
            global_from_ego: [4, 4] of now.
        """
        shapely: Any = import_module("shapely")
        turn = yaw_of(global_from_ego)
        c, s = np.cos(turn), np.sin(turn)
        xy = (self.xy - global_from_ego[:2, 3]) @ np.array([[c, -s], [s, c]])
        if not len(xy):
            return np.zeros((0, POINTS, 2))
        low, high = (of.reduceat(xy, self.ring[:-1], axis=0) for of in (np.minimum, np.maximum))
        near = np.flatnonzero(((low < REACH) & (high > -REACH)).all(axis=1))
        rings = [shapely.LineString(xy[self.ring[r] : self.ring[r + 1]]) for r in near]
        cut = shapely.line_merge(shapely.clip_by_rect(rings, *-REACH, *REACH))
        parts = [part for part in shapely.get_parts(cut) if part.length > 0]
        along = np.linspace(0, 1, POINTS)
        points = [shapely.get_coordinates(shapely.line_interpolate_point(p, along, normalized=True)) for p in parts]
        return np.array(points).reshape(-1, POINTS, 2)


def road_edge_of(tables: Tables, sample: int) -> RoadEdge | None:
    """The road's edge at a sample's place; None where no road segments and lanes are known.

    Raises:
        DataError: the map cannot be read.
    """
    path = vector_file(tables, sample)
    if path is None:
        return None
    if find_spec("shapely") is None:
        warnings.warn("the road's boundary needs shapely (pip install shapely); it is n/a", stacklevel=2)
        return None
    edge = open_expansion(path, RoadEdge)
    return edge if edge.known else None
