"""Twin of BEV pooling. Letters: M images, D depth bins, H W rows and columns, C channels, S samples."""

from __future__ import annotations

import torch
from torch import Tensor


def bev_pool(depth_MDHW: Tensor, feat_MHWC: Tensor, sample: Tensor, pixel: Tensor, cell_ptr: Tensor) -> Tensor:
    """Sum of depth-weighted pixel features over the samples of each cell (see ``fusion3d.ops.bev_pool``).

    Args:
        depth_MDHW: [M, D, H, W] weights.
        feat_MHWC: [M, H, W, C] features, same dtype.
        sample: [S] integer, flat index in ``depth`` of each sample, ordered by cell; what comes after the last cell's
            samples does not count.
        pixel: [S] integer, flat index in [M, H, W] of its pixel.
        cell_ptr: [cells + 1] integer, where each cell's samples begin and end.

    Returns:
        [cells, C], accumulated in float32 (float64 for float64 input).
    """
    num_cells = cell_ptr.numel() - 1
    exact = torch.promote_types(depth_MDHW.dtype, torch.float32)
    weight = depth_MDHW.reshape(-1)[sample.long()].to(exact)
    feat = feat_MHWC.flatten(0, 2)[pixel.long()].to(exact)
    position = torch.arange(sample.numel(), dtype=cell_ptr.dtype, device=sample.device)
    cell = torch.searchsorted(cell_ptr, position, right=True) - 1
    pooled = torch.zeros(num_cells + 1, feat.shape[1], dtype=exact, device=feat.device)  # the last row is outside
    return pooled.index_add(0, cell, weight[:, None] * feat)[:num_cells].to(depth_MDHW.dtype)


def bev_pool_pixel(sample: Tensor, bins: int, area: int) -> Tensor:
    """[S] flat index in [M, H, W] of samples given by their flat index in [M, D, H, W]; ``area`` is H * W."""
    return sample // max(bins * area, 1) * area + sample % max(area, 1)
