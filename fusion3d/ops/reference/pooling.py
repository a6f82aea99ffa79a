"""Twin of BEV pooling. Letters: M images, D depth bins, H W rows and columns, C channels, S kept samples of a plan."""

from __future__ import annotations

import torch
from torch import Tensor


def bev_pool(depth_MDHW: Tensor, feat_MHWC: Tensor, sample: Tensor, pixel: Tensor, cell_ptr: Tensor) -> Tensor:
    """Sum of depth-weighted pixel features over the samples of each cell (see ``fusion3d.ops.bev_pool``).

    Args:
        depth_MDHW: [M, D, H, W] weights.
        feat_MHWC: [M, H, W, C] features, same dtype.
        sample: [S] integer, flat index in ``depth`` of each kept sample, ordered by cell.
        pixel: [S] integer, flat index in [M, H, W] of its pixel.
        cell_ptr: [cells + 1] integer, where each cell's samples begin and end.

    Returns:
        [cells, C], accumulated in float32 (float64 for float64 input).
    """
    num_cells = cell_ptr.numel() - 1
    exact = torch.promote_types(depth_MDHW.dtype, torch.float32)
    weight = depth_MDHW.reshape(-1)[sample.long()].to(exact)
    feat = feat_MHWC.flatten(0, 2)[pixel.long()].to(exact)
    cell = torch.repeat_interleave(
        torch.arange(num_cells, device=sample.device), cell_ptr.diff().long(), output_size=sample.numel()
    )
    pooled = torch.zeros(num_cells, feat.shape[1], dtype=exact, device=feat.device)
    return pooled.index_add(0, cell, weight[:, None] * feat).to(depth_MDHW.dtype)
