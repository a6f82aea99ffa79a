"""Reduction of rows that belong together.

Letters: P points, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import reference
from fusion3d.ops.checks import FLOATS, check


def scatter(values: Tensor, index: Tensor, num_cells: int, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """Reduce the rows of ``values`` that share an index.

    Args:
        values: [P, C] float.
        index: [P] int64 in [0, num_cells).
        num_cells: rows of the result.
        reduce: how rows are joined.

    Returns:
        [num_cells, C], 0 where no row went. Differentiable with respect to the values.

    Raises:
        ValueError: wrong shape, dtype, reduction, or (on the CPU, where it is cheap) an index out of range.
    """
    check(values, "values", "PC", FLOATS)
    check(index, "index", "P", (torch.int64,))
    if len(index) != len(values):
        raise ValueError(f"index has {len(index)} entries; expected one for each of the {len(values)} rows of values")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce: found {reduce!r}; expected 'sum' or 'mean'")
    if index.device.type == "cpu" and len(index) and not torch.compiler.is_compiling():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= num_cells:
            raise ValueError(f"index: found values in [{low}, {high}]; expected [0, {num_cells})")
    return reference.scatter(values, index, num_cells, reduce)
