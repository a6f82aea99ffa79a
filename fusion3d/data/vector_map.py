"""Maps as polygons and lines: the classes of ground in the nuScenes map expansion.

Letters: V vertices, R rings, L classes, Y X cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.data.expansion import Shapes, open_expansion, packed
from fusion3d.data.raster import line_spans, paint, polygon_spans
from fusion3d.types import MAP_CLASSES, BEVGrid

LINE_WIDTH = 1.0  # [m] of dividers and painted lines: the 2 pixels of 0.5 m that the devkit draws for BEV segmentation

# The layers of each class: polygons, but for dividers. A class of which a file lacks a layer is not known.
_LAYERS = {name: (name,) for name in MAP_CLASSES} | {"divider": ("road_divider", "lane_divider")}


@dataclass(frozen=True, eq=False)
class VectorMap:
    """Rings and lines in global metres; the rings of one polygon follow each other."""

    xy: np.ndarray  # [V, 2] float64
    ring: np.ndarray  # [R + 1] int64: ring r is xy[ring[r] : ring[r + 1]]
    shape: np.ndarray  # [R] int64, ascending: rings of one polygon have the same
    layer: np.ndarray  # [R] int64, index in MAP_CLASSES
    is_area: np.ndarray  # [R] bool; False: a line
    known: np.ndarray  # [L] bool

    @staticmethod
    def read(content: dict[str, Any]) -> VectorMap:
        """From a file's JSON, without rings and lines of too few vertices to be one."""
        shapes = Shapes(content)
        known = np.array([all(layer in content for layer in _LAYERS[name]) for name in MAP_CLASSES])
        parts = [
            (index, *part)
            for index in np.flatnonzero(known).tolist()
            for layer in _LAYERS[MAP_CLASSES[index]]
            for row in content[layer]
            for part in _parts(row, shapes)
        ]
        rows = [
            (ring, number, index, is_area)
            for number, (index, is_area, rings) in enumerate(parts)
            for ring in rings
            if len(ring) >= (3 if is_area else 2)
        ]
        rings, shape, layer, is_area = zip(*rows, strict=True) if rows else ((), (), (), ())
        xy, start = packed(rings)
        return VectorMap(
            xy=xy,
            ring=start,
            shape=np.array(shape, dtype=np.int64),
            layer=np.array(layer, dtype=np.int64),
            is_area=np.array(is_area, dtype=bool),
            known=known,
        )

    def rasterise(self, grid: BEVGrid, grid_from_global: np.ndarray) -> np.ndarray:
        """[L, Y, X] bool: the cells whose centre a shape covers.

        Args:
            grid: the cells.
            grid_from_global: [3, 3] float64, of positions seen from above (x, y, 1).
        """
        xy = self.xy @ grid_from_global[:2, :2].T + grid_from_global[:2, 2]
        scale = abs(np.linalg.det(grid_from_global[:2, :2])) ** 0.5
        width = max(LINE_WIDTH * scale, grid.resolution)  # a thinner one would have gaps
        near = self._near(xy, grid, width)
        layers = len(MAP_CLASSES)
        areas, area = _select(xy, self.ring, near & self.is_area)
        lines, line = _select(xy, self.ring, near & ~self.is_area)
        chosen = np.flatnonzero(near & self.is_area)
        spans = [polygon_spans(areas, area, self.shape[chosen], self.layer[chosen], grid)]
        spans += line_spans(lines, line, self.layer[near & ~self.is_area], width, grid)
        return paint(spans, layers, grid)

    def _near(self, xy: np.ndarray, grid: BEVGrid, margin: float) -> np.ndarray:
        """[R] bool: rings and lines whose bounds reach into the grid. A ring that does not fills no cell of it."""
        if not len(self.layer):
            return np.zeros(0, dtype=bool)
        low, high = (of.reduceat(xy, self.ring[:-1], axis=0) for of in (np.minimum, np.maximum))
        edges = np.array([grid.x, grid.y])
        reaches = (high >= edges[:, 0] - margin) & (low <= edges[:, 1] + margin)
        return reaches[:, 0] & reaches[:, 1]


def open_map(path: Path) -> VectorMap:
    """The classes of ground in a file of the map expansion.

    Raises:
        DataError: it cannot be read, or is not what such a file holds.
    """
    return open_expansion(path, VectorMap)


def _parts(row: dict[str, Any], shapes: Shapes) -> list[tuple[bool, list[np.ndarray]]]:
    """The polygons or the line of a record, each as (is it an area?, rings)."""
    if "line_token" in row:
        return [(False, [shapes.line(row["line_token"])])]
    tokens = row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]]
    return [(True, shapes.rings(token)) for token in tokens]


def _select(xy: np.ndarray, ring: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices of chosen rings, and where each begins among them."""
    count = np.diff(ring)
    return xy[np.repeat(chosen, count)], np.cumsum([0, *count[chosen]], dtype=np.int64)
