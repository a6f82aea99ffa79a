"""Twin of multi-scale deformable attention.

Letters: N maps, S pixels of all levels, H heads, D channels of a head, Q queries, L levels, P points, R 1 or L, A
anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value_NSHD: Tensor,
    spatial_shapes: Sequence[int],
    reference_QRA2: Tensor,
    offsets_QHLP2: Tensor,
    logits_QHLP: Tensor,
    map_of_query: Tensor | None,
) -> Tensor:
    """Attention to sampled points, by ``grid_sample`` (see ``fusion3d.ops.ms_deform_attn``).

    Args:
        value_NSHD: [N, S, H, D] float, the levels of a map one after the other.
        spatial_shapes: rows and columns of the first level, of the second, ...
        reference_QRA2: [Q, R, A, 2] x, y as fractions of a level; point p goes out from anchor p % A.
        offsets_QHLP2: [Q, H, L, P, 2] x, y in pixels.
        logits_QHLP: [Q, H, L, P].
        map_of_query: [Q] integer, -1 for none; without it, every map has its Q / N queries, side by side.

    Returns:
        [Q, H, D], computed in float32 (float64 for float64).
    """
    exact = torch.promote_types(value_NSHD.dtype, torch.float32)
    shapes = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    num_queries, num_heads, _, num_points = logits_QHLP.shape
    weights = logits_QHLP.to(exact).flatten(2).softmax(-1).view_as(logits_QHLP)
    anchor = torch.arange(num_points, device=value_NSHD.device) % reference_QRA2.shape[2]
    size = torch.tensor([[cols, rows] for rows, cols in shapes], dtype=exact, device=value_NSHD.device)
    location = reference_QRA2.to(exact)[:, None, :, anchor] + offsets_QHLP2.to(exact) / size[:, None]
    value = value_NSHD.to(exact)
    if map_of_query is None:
        groups = (len(value), num_queries // max(len(value), 1))
        out = _sample(value, shapes, location.unflatten(0, groups), weights.unflatten(0, groups)).flatten(0, 1)
    else:
        out = value.new_zeros(num_queries, num_heads, value.shape[3])
        for i in range(len(value)):
            rows = torch.nonzero(map_of_query == i)[:, 0]
            out = out.index_copy(
                0, rows, _sample(value[i : i + 1], shapes, location[rows][None], weights[rows][None])[0]
            )
    return out.to(value_NSHD.dtype)


def _sample(value: Tensor, shapes: list[tuple[int, int]], location: Tensor, weights: Tensor) -> Tensor:
    """[N, q, H, D] from value [N, S, H, D], location [N, q, H, L, P, 2] and weights [N, q, H, L, P]."""
    num_maps, num_queries, num_heads = weights.shape[:3]
    out = value.new_zeros(num_maps * num_heads, value.shape[3], num_queries)
    if out.numel() == 0:  # grid_sample takes nothing that is empty; a gradient there is, of zeros
        nothing = 0 * (value.sum() + location.sum() + weights.sum())
        return nothing + value.new_zeros(num_maps, num_queries, num_heads, value.shape[3])
    for level, part in enumerate(value.split([rows * cols for rows, cols in shapes], dim=1)):
        image = part.permute(0, 2, 3, 1).reshape(num_maps * num_heads, -1, *shapes[level])
        grid = location[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        out = out + (F.grid_sample(image, grid, align_corners=False) * weight[:, None]).sum(-1)
    return out.view(num_maps, num_heads, -1, num_queries).permute(0, 3, 1, 2)
