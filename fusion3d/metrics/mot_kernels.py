"""The compiled loops of CLEAR MOT: matching over time, the cheapest way to pair, and how objects fared.

They stand in one file because numba's cache looks at the file of a function, not at those of the functions it calls.
"""

from __future__ import annotations

import numba
import numpy as np

MISS, MATCH, SWITCH = 0, 1, 2  # what became of a box; a switch: matched with another track than the one before


@numba.njit(cache=True)
def follow(
    truth_start: np.ndarray,
    truth_track: np.ndarray,
    found_start: np.ndarray,
    found_track: np.ndarray,
    start: np.ndarray,
    distance: np.ndarray,
    num_objects: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the boxes of a class over time.

    Args:
        truth_start: [F+1] the ground-truth boxes of frame f are truth_start[f] : truth_start[f+1].
        truth_track: [G] which of ``num_objects`` each is.
        found_start: [F+1] of the predictions.
        found_track: [P] identity.
        start: [F+1] where each frame's distances begin.
        distance: flat, of each frame [boxes, predictions]; infinite for pairs that cannot be.
        num_objects: one more than the largest of ``truth_track``.

    Returns:
        [G] int8 state and [G] float64 distance, NaN for a miss; [P] int8 state of the partner.
    """
    state = np.zeros(len(truth_track), dtype=np.int8)
    apart = np.full(len(truth_track), np.nan)
    partner = np.zeros(len(found_track), dtype=np.int8)
    last = np.full(num_objects, -1, dtype=np.int64)  # the track that was matched with each object last
    for f in range(len(truth_start) - 1):
        g, p = truth_start[f], found_start[f]
        rows, cols = truth_start[f + 1] - g, found_start[f + 1] - p
        if rows == 0 or cols == 0:
            continue
        near = distance[start[f] : start[f + 1]].copy().reshape(rows, cols)
        for i in range(rows):
            if last[truth_track[g + i]] < 0:
                continue
            for j in range(cols):
                if partner[p + j] == MISS and found_track[p + j] == last[truth_track[g + i]]:
                    if near[i, j] < np.inf:
                        state[g + i], partner[p + j], apart[g + i] = MATCH, MATCH, near[i, j]
                        near[i, :] = np.inf
                        near[:, j] = np.inf
                    break
        for i, j in enumerate(pair(near)):
            if j >= 0 and near[i, j] < np.inf:
                before, now = last[truth_track[g + i]], found_track[p + j]
                state[g + i] = partner[p + j] = SWITCH if before >= 0 and before != now else MATCH
                apart[g + i] = near[i, j]
                last[truth_track[g + i]] = now
    return state, apart, partner


@numba.njit(cache=True)
def pair(near: np.ndarray) -> np.ndarray:
    """[N] int64: the column of each row, by the most pairs that are finite and then the least distance; -1 none."""
    rows, cols = near.shape
    single = np.full(rows, -1, dtype=np.int64)
    taken = np.zeros(cols, dtype=np.bool_)
    most, free = 0.0, True
    for i in range(rows):
        for j in range(cols):
            if near[i, j] < np.inf:
                most = max(most, near[i, j])
                free = free and single[i] < 0 and not taken[j]
                single[i], taken[j] = j, True
    if free:  # nobody wants what another wants
        return single
    never = 2 * min(rows, cols) * (most + 1) + 1  # dearer than any way to do without
    cost = near.copy()
    for i in range(rows):
        for j in range(cols):
            if not near[i, j] < np.inf:
                cost[i, j] = never
    return assign(cost)


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


@numba.njit(cache=True)
def lives(track: np.ndarray, state: np.ndarray) -> tuple[int, int, int, int, int, int]:
    """Sums over objects, whose boxes come one after the other, frame by frame without gaps.

    Returns:
        Objects that were ever matched; those that were for at least 0.8, and for less than 0.2, of their boxes; how
        often a tracked object was lost and found again; frames before the first match, and frames of the longest
        gap, both summed over the matched objects.
    """
    tracked = mostly_tracked = mostly_lost = broken = delay = gap = 0
    begin = 0
    while begin < len(track):
        end, hits, longest, since, losses = begin, 0, 0, begin - 1, 0
        while end < len(track) and track[end] == track[begin]:
            if state[end] != MISS:
                if hits == 0:
                    delay += end - begin
                elif state[end - 1] == MISS:
                    losses += 1
                hits += 1
                longest, since = max(longest, end - since - 1), end
            end += 1
        if hits > 0:
            tracked += 1
            broken += losses
            gap += max(longest, end - 1 - since)
        mostly_tracked += hits / (end - begin) >= 0.8
        mostly_lost += hits / (end - begin) < 0.2
        begin = end
    return tracked, mostly_tracked, mostly_lost, broken, delay, gap
