"""Twins of grouping and reduction. Letters: P rows, K rows that belong somewhere, S segments, C channels."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_plan(keys: Tensor, num_keys: int, keep_empty: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Order, pointers, keys and segment of each row (see ``fusion3d.ops.segment_plan``)."""
    belongs = (keys >= 0) & (keys < num_keys)
    ordered, order = torch.where(belongs, keys.long(), num_keys).sort(stable=True)
    if keep_empty:
        key = torch.arange(num_keys, dtype=keys.dtype, device=keys.device)
        number = ordered
    else:
        inside = torch.searchsorted(ordered, num_keys)
        ordered, order = ordered[:inside], order[:inside]
        key, number = torch.unique_consecutive(ordered, return_inverse=True)
    ptr = torch.searchsorted(number, torch.arange(len(key) + 1, device=keys.device))
    number = torch.where(ordered < num_keys, number, -1)
    segment = torch.full_like(keys, -1, dtype=torch.int32).index_copy(0, order, number.int())
    return order.int(), ptr.int(), key.to(keys.dtype), segment


def segment_reduce(values: Tensor, order: Tensor, ptr: Tensor, reduce: str) -> Tensor:
    """Reduce the rows of each segment (see ``fusion3d.ops.segment_reduce``)."""
    length = ptr.diff().long()
    numbers = torch.arange(len(length), device=values.device)
    segment = torch.repeat_interleave(numbers, length)  # [K]
    row = order[: len(segment)].long()
    exact = values[row].to(torch.promote_types(values.dtype, torch.float32))  # [K, C]
    empty = exact.new_zeros(len(length), values.shape[1])
    if reduce != "max":
        out = empty.index_add(0, segment, exact)
        return (out / length.clamp(min=1)[:, None] if reduce == "mean" else out).to(values.dtype)
    index = segment[:, None].expand_as(exact)
    largest = empty.scatter_reduce(0, index, exact.detach(), "amax", include_self=False)
    # The first row that holds the largest value, so that it alone gets the gradient; K where there is none.
    is_largest = (exact == largest[segment]) | exact.isnan()
    candidate = torch.where(is_largest, torch.arange(len(row), device=row.device)[:, None], len(row))
    first = torch.full_like(empty, len(row), dtype=torch.int64).scatter_reduce(0, index, candidate, "amin")
    return torch.cat([exact, exact.new_zeros(1, exact.shape[1])]).gather(0, first).to(values.dtype)
