"""Twins of grouping and reduction. Letters: P rows, K rows that belong somewhere, S segments, C channels."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_plan(keys: Tensor, num_keys: int, keep_empty: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Order, pointers, keys and segment of each row (see ``fusion3d.ops.segment_plan``)."""
    ordered, order = keys.sort(stable=True)
    first = torch.searchsorted(ordered, 0)
    ordered, order = ordered[first:], order[first:]
    if keep_empty:
        key = torch.arange(num_keys, dtype=keys.dtype, device=keys.device)
        inverse = ordered
    else:
        key, inverse = torch.unique_consecutive(ordered, return_inverse=True)
    ptr = torch.searchsorted(inverse, torch.arange(len(key) + 1, dtype=inverse.dtype, device=keys.device))
    segment = torch.full_like(keys, -1, dtype=torch.int32).index_copy(0, order, inverse.int())
    return order.int(), ptr.int(), key, segment


def segment_reduce(values: Tensor, order: Tensor, ptr: Tensor, reduce: str) -> Tensor:
    """Reduce the rows of each segment (see ``fusion3d.ops.segment_reduce``)."""
    exact = values[order.long()].to(torch.promote_types(values.dtype, torch.float32))
    length = ptr.diff().long()
    row = torch.repeat_interleave(
        torch.arange(len(length), device=values.device), length, output_size=len(order)
    )
    out = exact.new_zeros(len(length), values.shape[1])
    if reduce == "max":
        index = row[:, None].expand_as(exact)
        out = out.scatter_reduce(0, index, exact, "amax", include_self=False)
    else:
        out = out.index_add(0, row, exact)
        if reduce == "mean":
            out = out / length.clamp(min=1)[:, None]
    return out.to(values.dtype)
