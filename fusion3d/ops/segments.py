"""Rows that belong together, side by side; and their reduction.

Letters: P rows, K rows that belong somewhere, S segments, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import reference
from fusion3d.ops.checks import FLOATS, check

__all__ = ["SegmentPlan", "segment_plan", "segment_reduce"]


@dataclass(frozen=True)
class SegmentPlan:
    """Which rows make up which segment; segments are ordered by key, their rows by position."""

    order: Tensor  # [K] int32, rows segment by segment
    ptr: Tensor  # [S + 1] int32, the rows of segment i are order[ptr[i]:ptr[i + 1]]
    key: Tensor  # [S] of the dtype of the keys, ascending
    segment: Tensor  # [P] int32, segment of each row, -1 where it belongs to none

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1


def segment_plan(keys: Tensor, num_keys: int, keep_empty: bool = False) -> SegmentPlan:
    """Group rows by key, stably.

    Args:
        keys: [P] int32 or int64 in [-1, num_keys); rows of key -1 belong to no segment.
        num_keys: number of possible keys.
        keep_empty: let every key have its segment, so that S is ``num_keys`` and segment i has key i. Otherwise only
            the keys that occur have one, which takes one host read on CUDA.

    Returns:
        The plan for ``segment_reduce``.

    Raises:
        ValueError: wrong shape or dtype, 2^31 rows or more, or (on the CPU, where it is cheap) a key out of range.
    """
    check(keys, "keys", "P", (torch.int32, torch.int64))
    order, ptr, key, segment = reference.segment_plan(keys, num_keys, keep_empty)
    return SegmentPlan(order, ptr, key, segment)


def segment_reduce(values: Tensor, plan: SegmentPlan, reduce: Literal["sum", "mean", "max"]) -> Tensor:
    """Reduce the rows of each segment.

    Args:
        values: [P, C] float.
        plan: from ``segment_plan`` for P rows.
        reduce: how rows are joined; of several largest rows the first gets the gradient.

    Returns:
        [S, C], 0 for an empty segment. Sums are in float32 (float64 for float64), in the order of the rows.

    Raises:
        ValueError: wrong shape, dtype, device or reduction.
    """
    check(values, "values", "PC", FLOATS)
    return reference.segment_reduce(values, plan.order, plan.ptr, reduce)
