"""The cheapest way to pair the rows of a matrix with its columns, compiled, with scipy's choice between equal ones."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True)
def assign(cost: np.ndarray) -> np.ndarray:
    """The assignment of least total cost: as many pairs as the shorter side has.

    Shortest augmenting paths as in Crouse, "On implementing 2D rectangular assignment algorithms" (2016), visiting
    columns in the order that ``scipy.optimize.linear_sum_assignment`` does, so that ties are broken alike.

    Args:
        cost: [N, M] float64, finite.

    Returns:
        [N] int64: the column of each row, -1 for rows without one.
    """
    rows, cols = cost.shape
    if cols < rows:
        row_of = assign_wide(cost.T.copy())
        col_of = np.full(rows, -1, dtype=np.int64)
        for col in range(cols):
            col_of[row_of[col]] = col
        return col_of
    return assign_wide(cost)


@numba.njit(cache=True)
def assign_wide(cost: np.ndarray) -> np.ndarray:
    """``assign`` where there are at least as many columns as rows."""
    rows, cols = cost.shape
    row_price, col_price = np.zeros(rows), np.zeros(cols)
    col_of, row_of = np.full(rows, -1, dtype=np.int64), np.full(cols, -1, dtype=np.int64)
    for start in range(rows):
        # Dijkstra from one free row to the nearest free column, over edges by what they cost beyond the prices.
        nearest, come_from = np.full(cols, np.inf), np.full(cols, -1, dtype=np.int64)
        seen_rows, seen_cols = np.zeros(rows, dtype=np.bool_), np.zeros(cols, dtype=np.bool_)
        waiting = np.arange(cols - 1, -1, -1)
        left, reached, row, end = cols, 0.0, start, -1
        while end < 0:
            seen_rows[row] = True
            best, lowest = -1, np.inf
            for place in range(left):
                col = waiting[place]
                length = reached + cost[row, col] - row_price[row] - col_price[col]
                if length < nearest[col]:
                    nearest[col], come_from[col] = length, row
                if nearest[col] < lowest or (nearest[col] == lowest and row_of[col] < 0):  # a free one ends the search
                    best, lowest = place, nearest[col]
            reached = lowest
            col = waiting[best]
            if row_of[col] < 0:
                end = col
            else:
                row = row_of[col]
            seen_cols[col] = True
            left -= 1
            waiting[best] = waiting[left]
        row_price[start] += reached
        for row in range(rows):
            if seen_rows[row] and row != start:
                row_price[row] += reached - nearest[col_of[row]]
        for col in range(cols):
            if seen_cols[col]:
                col_price[col] -= reached - nearest[col]
        col = end
        while True:  # along the path every row changes to the column after it
            row = come_from[col]
            row_of[col] = row
            col_of[row], col = col, col_of[row]
            if row == start:
                break
    return col_of
