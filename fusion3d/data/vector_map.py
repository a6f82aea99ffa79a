"""Maps as polygons and lines: the nuScenes map expansion, and the map of a synthetic scene, to one form.

The expansion's file of a city (``maps/expansion/<location>.json``) has tens of megabytes of tokens; what is read of it
is kept in the cache folder as plain arrays.
Letters: V vertices, R rings, L layers, Y X cells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.data.raster import line_spans, paint, polygon_spans
from fusion3d.errors import DataError
from fusion3d.files import cache_folder, write_cache
from fusion3d.types import MAP_CLASSES, BEVGrid

LINE_WIDTH = 1.0  # [m] of dividers and painted lines: the 2 pixels of 0.5 m that the devkit draws for BEV segmentation

# The layers of each class. nuScenes keeps all but dividers as polygons, a synthetic map its stop lines as lines too. A
# class whose layers a file lacks is not known.
_EXPANSION = {name: (name,) for name in MAP_CLASSES} | {"divider": ("road_divider", "lane_divider")}
_SYNTHETIC = {name: (name,) for name in MAP_CLASSES} | {"divider": ("lane_divider",)}
_SYNTHETIC_LINES = ("lane_divider", "stop_line")
_CACHE_FROM = 1_000_000  # [bytes] smaller files are read faster than they are looked up

Rings = list[np.ndarray]


@dataclass(frozen=True, eq=False)
class VectorMap:
    """Rings and lines in global metres; the rings of one polygon follow each other."""

    xy: np.ndarray  # [V, 2] float64
    ring: np.ndarray  # [R + 1] int64: ring r is xy[ring[r] : ring[r + 1]]
    shape: np.ndarray  # [R] int64, ascending: rings of one polygon have the same
    layer: np.ndarray  # [R] int64, index in MAP_CLASSES
    is_area: np.ndarray  # [R] bool; False: a line
    known: np.ndarray  # [L] bool

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
    """The map in a JSON file of either kind.

    Raises:
        DataError: it cannot be read, or is not what such a file holds.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot open the map {path}: {error}; download the map again") from error
    return _open(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _open(path: Path, size: int, modified: int) -> VectorMap:
    if size < _CACHE_FROM:
        return _read(path)
    digest = hashlib.sha256(f"{path.resolve()}\n{size}\n{modified}".encode()).hexdigest()[:16]
    cached = cache_folder() / "maps" / f"{digest}.npz"
    names = [f.name for f in dataclasses.fields(VectorMap)]
    try:
        with np.load(cached, allow_pickle=False) as file:
            return VectorMap(**{name: file[name] for name in names})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = _read(path)  # there is none, or a damaged one
    arrays: dict[str, Any] = {name: getattr(found, name) for name in names}
    write_cache(cached, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return found


def _read(path: Path) -> VectorMap:
    try:
        content = json.loads(path.read_bytes())
        layers, shapes = _read_expansion(content) if "node" in content else _read_synthetic(content)
        found = _pack(layers, content, list(shapes))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"nothing is called {error}" if isinstance(error, KeyError) else error
        raise DataError(f"cannot read the map {path}: {reason}; download or make the map again") from error
    if not np.isfinite(found.xy).all():
        raise DataError(f"cannot read the map {path}: a position is not finite; download or make the map again")
    return found


def _read_expansion(content: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], Iterator[tuple[str, bool, Rings]]]:
    """Layers by class, and each shape as (layer, is it an area?, rings)."""
    node = {row["token"]: (float(row["x"]), float(row["y"])) for row in content["node"]}
    polygon = {row["token"]: row for row in content["polygon"]}
    line = {row["token"]: row["node_tokens"] for row in content["line"]}

    def place(tokens: list[str]) -> np.ndarray:
        return np.array([node[token] for token in tokens], dtype=np.float64).reshape(-1, 2)

    def shapes() -> Iterator[tuple[str, bool, Rings]]:
        for name in (layer for layers in _EXPANSION.values() for layer in layers):
            for row in content.get(name, ()):
                if "line_token" in row:
                    yield name, False, [place(line[row["line_token"]])]
                    continue
                for token in row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]]:
                    holes = [hole["node_tokens"] for hole in polygon[token].get("holes", ())]
                    yield name, True, [place(tokens) for tokens in (polygon[token]["exterior_node_tokens"], *holes)]

    return _EXPANSION, shapes()


def _read_synthetic(content: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], Iterator[tuple[str, bool, Rings]]]:
    """The same of a synthetic scene's map, whose layers are lists of polygons or lines."""
    if content.keys().isdisjoint(MAP_CLASSES):
        raise ValueError(f"it has none of {', '.join(MAP_CLASSES)}")
    names = [layer for layers in _SYNTHETIC.values() for layer in layers]
    return _SYNTHETIC, (
        (name, name not in _SYNTHETIC_LINES, [np.array(ring, dtype=np.float64).reshape(len(ring), 2)])
        for name in names
        for ring in content.get(name, ())
    )


def _pack(
    layers: dict[str, tuple[str, ...]], content: dict[str, Any], shapes: list[tuple[str, bool, Rings]]
) -> VectorMap:
    """Shapes of the known classes to arrays, without rings and lines of too few vertices to be one."""
    known = np.array([all(layer in content for layer in layers[name]) for name in MAP_CLASSES])
    class_of = {layer: MAP_CLASSES.index(name) for name, of_class in layers.items() for layer in of_class}
    rows = [
        (ring, number, class_of[name], is_area)
        for number, (name, is_area, rings) in enumerate(shapes)
        for ring in rings
        if known[class_of[name]] and len(ring) >= (3 if is_area else 2)
    ]
    rings, shape, layer, is_area = zip(*rows, strict=True) if rows else ((), (), (), ())
    return VectorMap(
        xy=np.concatenate([np.zeros((0, 2)), *rings]),
        ring=np.cumsum([0, *map(len, rings)], dtype=np.int64),
        shape=np.array(shape, dtype=np.int64),
        layer=np.array(layer, dtype=np.int64),
        is_area=np.array(is_area, dtype=bool),
        known=known,
    )


def _select(xy: np.ndarray, ring: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices of chosen rings, and where each begins among them."""
    count = np.diff(ring)
    return xy[np.repeat(chosen, count)], np.cumsum([0, *count[chosen]], dtype=np.int64)
