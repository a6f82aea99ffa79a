"""Polygons and lines to the cells of the grid whose centres they cover.

Everything is a span of cells in a row: rows cut a polygon at its edges, and between the first and the second cut, the
third and the fourth, ... is its inside. So holes need no care, and all shapes are filled at once. Exact: a cell counts
where its centre is inside, or not farther from the line than half its width.
Letters: V vertices, R rings, E edges, S spans, L layers, Y X cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fusion3d.types import BEVGrid


@dataclass(frozen=True)
class Spans:
    """Cells ``first`` to ``end`` (exclusive) of rows of a layer."""

    layer: np.ndarray  # [S] int64
    row: np.ndarray  # [S] int64, in [0, Y)
    first: np.ndarray  # [S] int64, in [0, X]
    end: np.ndarray  # [S] int64, in [first, X]


def paint(spans: Iterable[Spans], num_layers: int, grid: BEVGrid) -> np.ndarray:
    """[L, Y, X] bool: the cells that any span covers."""
    rows, cols = grid.shape
    depth = np.zeros(num_layers * rows * (cols + 1), dtype=np.int32)  # how many spans begin less those that end
    for some in spans:
        at = (some.layer * rows + some.row) * (cols + 1)
        np.add.at(depth, at + some.first, 1)
        np.add.at(depth, at + some.end, -1)
    return np.cumsum(depth.reshape(num_layers, rows, cols + 1), axis=2)[..., :cols] > 0


def polygon_spans(xy: np.ndarray, ring: np.ndarray, polygon: np.ndarray, layer: np.ndarray, grid: BEVGrid) -> Spans:
    """The spans of polygons, each of one or more rings: what is inside of an odd number of its rings is inside.

    Args:
        xy: [V, 2] vertices, in the frame of the grid [m].
        ring: [R + 1] where the rings begin in ``xy``, and V; a ring is closed implicitly.
        polygon: [R] int64, ascending: which polygon a ring is of.
        layer: [R] int64, the same for all rings of a polygon.
        grid: the cells.
    """
    rows, cols = grid.shape
    count = np.diff(ring)
    following = np.arange(1, len(xy) + 1)
    following[ring[1:][count > 0] - 1] = ring[:-1][count > 0]
    ring_of = np.repeat(np.arange(len(count)), count)
    start, stop = xy, xy[following]
    # A row's centre lies beyond a vertex or not: that alone decides which edges it cuts, so cuts come in pairs.
    row_of = np.clip(_first_center(xy[:, 1], grid.y[0], grid), 0, rows)
    low, high = np.minimum(row_of, row_of[following]), np.maximum(row_of, row_of[following])
    edge, row = _expand(low, high)
    y = grid.y[0] + (row + 0.5) * grid.resolution
    slope = (stop[edge, 0] - start[edge, 0]) / (stop[edge, 1] - start[edge, 1])
    x = start[edge, 0] + (y - start[edge, 1]) * slope
    col = np.clip(_first_center(x, grid.x[0], grid), 0, cols)
    owner = ring_of[edge]
    order = np.argsort((polygon[owner] * rows + row) * (cols + 1) + col, kind="stable")
    first, end = order[::2], order[1::2]
    return Spans(layer[owner[first]], row[first], col[first], col[end])


def disc_spans(xy: np.ndarray, radius: float, layer: np.ndarray, grid: BEVGrid) -> Spans:
    """The spans of discs around [V, 2] points, of layers [V]."""
    rows, cols = grid.shape
    low = np.clip(_first_center(xy[:, 1] - radius, grid.y[0], grid), 0, rows)
    disc, row = _expand(low, np.clip(_last_center(xy[:, 1] + radius, grid.y[0], grid) + 1, low, rows))
    away = grid.y[0] + (row + 0.5) * grid.resolution - xy[disc, 1]
    half = np.sqrt(np.maximum(radius**2 - away**2, 0))
    first = np.clip(_first_center(xy[disc, 0] - half, grid.x[0], grid), 0, cols)
    end = np.clip(_last_center(xy[disc, 0] + half, grid.x[0], grid) + 1, first, cols)
    return Spans(layer[disc], row, first, end)


def line_spans(xy: np.ndarray, line: np.ndarray, layer: np.ndarray, width: float, grid: BEVGrid) -> list[Spans]:
    """The spans of lines with round ends and corners: a rectangle along every segment, a disc at every vertex.

    Args:
        xy: [V, 2] vertices, in the frame of the grid [m].
        line: [R + 1] where the lines begin in ``xy``, and V.
        layer: [R] int64.
        width: of the lines [m].
        grid: the cells.
    """
    line_of = np.repeat(np.arange(len(line) - 1), np.diff(line))
    joined = np.flatnonzero(line_of[1:] == line_of[:-1])
    start, along = xy[joined], xy[joined + 1] - xy[joined]
    length = np.linalg.norm(along, axis=1)
    start, along, joined = start[length > 0], along[length > 0], joined[length > 0]
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2 / length[length > 0])[:, None]
    corners = np.stack([start - side, start + along - side, start + along + side, start + side], axis=1)
    number = np.arange(len(corners))
    segments = polygon_spans(
        corners.reshape(-1, 2), 4 * np.arange(len(corners) + 1), number, layer[line_of[joined]], grid
    )
    return [segments, disc_spans(xy, width / 2, layer[line_of], grid)]


def _first_center(position: np.ndarray, edge: float, grid: BEVGrid) -> np.ndarray:
    """The first cell whose centre is not before a position along an axis that begins at ``edge``."""
    return np.ceil((position - edge) / grid.resolution - 0.5).astype(np.int64)


def _last_center(position: np.ndarray, edge: float, grid: BEVGrid) -> np.ndarray:
    """The last cell whose centre is not beyond a position."""
    return np.floor((position - edge) / grid.resolution - 0.5).astype(np.int64)


def _expand(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every number of the ranges [low, high), and which range it is of."""
    count = high - low
    owner = np.repeat(np.arange(len(count)), count)
    begin = np.repeat(np.cumsum(count) - count, count)
    return owner, np.arange(len(owner)) - begin + low[owner]
