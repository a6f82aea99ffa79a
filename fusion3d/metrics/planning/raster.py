"""Boxes painted on a grid, as published planners look for collisions: which cells are whose, to the cell.

Others paint every agent with OpenCV's ``fillPoly`` and look up the cells under the ego. Here the cells of an agent are
only worked out in the rows of the ego, where the two can meet. What is painted of a convex polygon with corners in
cells is, row by row, all from the first to the last cell of its outline, and that is four lines of Bresenham.
Letters: M pairs of ego and agent, R rows, Q cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.metrics.planning.drives import EgoBox
from fusion3d.metrics.planning.rectangles import corners

HALF = 50.0  # [m] the grid reaches as far to each side
_AT_ONCE = 4096  # pairs whose cells are compared at a time


@dataclass(frozen=True)
class Raster:
    """How a protocol turns metres into cells. Positions are (forward, side): to the right, or to the left."""

    resolution: float = 0.5  # [m]
    rounded: bool = True  # corners of agents go to the nearest cell boundary; False: to the cell that they are in
    rows_back: bool = False  # rows count from the front; the ego's one row beside those of the agents
    columns_forward: bool = False  # columns, not rows, go forward
    turned: bool = False  # the ego's cells turn with its heading
    point: tuple[float, float] = (0.0, 0.0)  # [m] from the path to where the test of one point looks: forward, side

    @property
    def size(self) -> int:
        """Cells along a side."""
        return round(2 * HALF / self.resolution)

    def of_agents(self, box: np.ndarray) -> np.ndarray:
        """[M, 5] rectangles (forward, side, ...) to [M, 4, 2] corners: row, column."""
        forward, side = np.moveaxis(corners(box), -1, 0)
        forward = -forward if self.rows_back else forward
        along = (side, forward) if self.columns_forward else (forward, side)
        place = np.stack(along, axis=-1)
        if self.rounded:
            return np.round((place + HALF) / self.resolution).astype(np.int64)
        return np.trunc((place + HALF - self.resolution / 2) / self.resolution).astype(np.int64)

    def of_ego(self, path: np.ndarray, ego: EgoBox) -> np.ndarray:
        """[M, 3] poses (forward, side, yaw from forward to side) to [M, Q, 2] cells: row, column."""
        middle = (HALF - self.resolution / 2) / self.resolution  # the index of the place 0
        reach = np.array([[ego.ahead - ego.length / 2, ego.ahead + ego.length / 2], [-ego.width / 2, ego.width / 2]])
        low, high = np.ceil(reach[:, 0] / self.resolution + middle), np.floor(reach[:, 1] / self.resolution + middle)
        grid = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1), indexing="ij")
        cells = np.broadcast_to(np.stack(grid, axis=-1).reshape(1, -1, 2), (len(path), grid[0].size, 2))
        if self.turned:
            c, s = np.cos(path[:, None, 2]), np.sin(path[:, None, 2])
            x, y = cells[..., 0] - middle, cells[..., 1] - middle
            cells = np.round(np.stack([c * x - s * y, s * x + c * y], axis=-1) + middle)
        place = path[:, None, :2] / self.resolution + cells
        if self.rows_back:
            place = place * (-1, 1) + (self.size, 0)
        index = np.clip(np.trunc(place).astype(np.int64), 0, self.size - 1)
        return index[..., ::-1] if self.columns_forward else index

    def of_point(self, path: np.ndarray) -> np.ndarray:
        """[M, 3] poses to [M, 2] cells (row, column) of the test of one point; those beyond the grid are not on it."""
        place = path[:, :2] + self.point
        place = place * (-1, 1) if self.rows_back else place
        index = np.trunc((place + HALF - self.resolution / 2) / self.resolution).astype(np.int64)
        return index[:, ::-1] if self.columns_forward else index


def meet(cells: np.ndarray, quads: np.ndarray, pair: tuple[np.ndarray, np.ndarray], size: int) -> np.ndarray:
    """Does an agent's painted polygon hold one of the ego's cells?

    Args:
        cells: [E, Q, 2] row and column of the cells of each ego.
        quads: [A, 4, 2] corners of each convex polygon.
        pair: ([M], [M]) rows of ``cells`` and of ``quads``.
        size: of the grid; what is painted outside of it is lost.

    Returns:
        [M] bool.
    """
    own, other = pair
    hit = np.zeros(len(own), dtype=bool)
    low, high = cells.min(axis=1), cells.max(axis=1)
    quads_low, quads_high = quads.min(axis=1), quads.max(axis=1)
    near = np.flatnonzero(((low[own] <= quads_high[other]) & (high[own] >= quads_low[other])).all(axis=1))
    for start in range(0, len(near), _AT_ONCE):
        some = near[start : start + _AT_ONCE]
        e, a = own[some], other[some]
        count = int((high[e, 0] - low[e, 0]).max()) + 1
        rows = low[e, 0, None] + np.arange(count)
        first, last = row_extent(quads[a], rows)
        of_row = cells[e, :, 0] - low[e, 0, None]  # [m, Q]
        column = cells[e, :, 1]
        hit[some] = (
            (column >= np.take_along_axis(first, of_row, 1)) & (column <= np.take_along_axis(last, of_row, 1))
        ).any(axis=1)
    return hit


def row_extent(quads: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and last cell that ``fillPoly`` paints of convex polygons in rows.

    Args:
        quads: [M, 4, 2] row and column of the corners, integers.
        rows: [M, R].

    Returns:
        [M, R] first and [M, R] last column; first > last where nothing is painted.
    """
    far = np.iinfo(np.int64).max // 4
    first, last = np.full(rows.shape, far), np.full(rows.shape, -far)
    for corner in range(4):
        one, two = quads[:, corner], quads[:, (corner + 1) % 4]
        swap = (one[:, 1] > two[:, 1])[:, None]  # OpenCV draws lines from left to right
        begin, end = np.where(swap, two, one), np.where(swap, one, two)
        across, down = end[:, 1] - begin[:, 1], end[:, 0] - begin[:, 0]
        across, drop = across[:, None], np.abs(down)[:, None]
        step = (rows - begin[:, :1]) * np.where(down < 0, -1, 1)[:, None]
        inside = (step >= 0) & (step <= drop)
        # Steep: one cell in each row, at the place rounded half down. Flat: those whose place rounds to the row.
        steep = drop > across
        at = -((drop - 2 * across * step) // (2 * np.maximum(drop, 1)))
        begins = np.where(drop == 0, 0, ((2 * step - 1) * across) // np.maximum(2 * drop, 1) + 1)
        ends = np.where(drop == 0, across, ((2 * step + 1) * across) // np.maximum(2 * drop, 1))
        left = np.where(steep, at, np.maximum(begins, 0)) + begin[:, 1:]
        right = np.where(steep, at, np.minimum(ends, across)) + begin[:, 1:]
        first = np.where(inside, np.minimum(first, left), first)
        last = np.where(inside, np.maximum(last, right), last)
    return first, last
