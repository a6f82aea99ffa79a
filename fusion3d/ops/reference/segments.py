"""Twins of the reductions. Letters: P points, C channels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def scatter(values: Tensor, index: Tensor, num_cells: int, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """Reduce rows that share an index (see ``fusion3d.ops.scatter``)."""
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    out = exact.new_zeros(num_cells, values.shape[1]).index_add(0, index, exact)
    if reduce == "mean":
        count = torch.zeros(num_cells, dtype=exact.dtype, device=values.device)
        count = count.index_add(0, index, torch.ones_like(index, dtype=exact.dtype))
        out = out / count.clamp(min=1)[:, None]
    return out.to(values.dtype)
