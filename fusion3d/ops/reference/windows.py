"""Twin of window attention. Letters: N rows, H heads, D channels of a head, W windows, L rows of a window."""

from __future__ import annotations

import torch
from torch import Tensor


def window_attention(
    q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor, cu_seqlens: Tensor, order: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention inside windows (see ``fusion3d.ops.window_attention``), those of one length at a time: no padding.

    Args:
        q_NHD: [N, H, D] queries.
        k_NHD: [N, H, D] keys, same dtype.
        v_NHD: [N, H, D] values, same dtype.
        cu_seqlens: [W + 1] integer, where each window begins and ends in ``order``.
        order: [K] integer, rows window by window, or None where they lie so.
        scale: of the scores.

    Returns:
        [N, H, D] results of the dtype of q, and [N, H] log-sum-exp of the scaled scores in float32 (float64 for
        float64); both 0 for rows that no window lists.
    """
    exact = torch.promote_types(q_NHD.dtype, torch.float32)
    out = sum(t[:0].sum() for t in (q_NHD, k_NHD, v_NHD))  # 0, that has a gradient where there is no window at all
    out = out + torch.zeros_like(q_NHD, dtype=exact, memory_format=torch.contiguous_format)
    lse = out.new_zeros(out.shape[:2])
    lengths = cu_seqlens.diff().long()
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        begin = cu_seqlens[:-1][lengths == length].long()
        rows_WL = begin[:, None] + torch.arange(length, device=begin.device)
        if order is not None:
            rows_WL = order.long()[rows_WL]
        q, k, v = (t[rows_WL].to(exact).transpose(1, 2) for t in (q_NHD, k_NHD, v_NHD))  # [W, H, L, D]
        score = q @ k.transpose(2, 3) * scale
        flat = rows_WL.flatten()
        out = out.index_copy(0, flat, (score.softmax(3) @ v).transpose(1, 2).flatten(0, 1))
        lse = lse.index_copy(0, flat, score.logsumexp(3).transpose(1, 2).flatten(0, 1))
    return out.to(q_NHD.dtype), lse
