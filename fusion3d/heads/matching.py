"""Which query says which box: the cheapest one-to-one matching (DETR, Carion et al., 2020), with TransFusion's costs.

Letters: L layers, Q queries, K boxes of a sample, M matched pairs, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d import ops
from fusion3d.types import BEVGrid, Boxes

_CLASS_COST, _CENTER_COST, _OVERLAP_COST = 0.15, 0.25, 0.25
_ALPHA = 0.25  # of the focal loss
_NEVER = 1e6  # cost of what is not a number


@dataclass(frozen=True)
class Pairs:
    """M queries and their boxes."""

    layer: Tensor  # [M] int64
    sample: Tensor  # [M] int64
    query: Tensor  # [M] int64
    box: Tensor  # [M] int64, counted over all samples


def sigmoid_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss with alpha 1/4 and gamma 2 (Lin et al., 2017), element by element; targets are 0 or 1."""
    p, minus_log_not_p = logits.sigmoid(), F.softplus(logits)
    up = _ALPHA * (1 - p) ** 2 * (minus_log_not_p - logits)
    return torch.where(target == 1, up, (1 - _ALPHA) * p**2 * minus_log_not_p)


def box_overlap(a: Boxes, b: Boxes) -> Tensor:
    """[Q, K] intersection over union of the volumes of Q and K upright boxes."""
    seen_a, seen_b = (torch.cat([one.center[:, :2], one.size[:, :2], one.yaw[:, None]], dim=1) for one in (a, b))
    iou_QK = ops.box_iou_bev(seen_a, seen_b)
    area_Q1, area_K = a.size[:, :2].prod(1)[:, None], b.size[:, :2].prod(1)
    half_Q1, half_K = a.size[:, 2, None] / 2, b.size[:, 2] / 2
    top_QK = torch.minimum(a.center[:, 2, None] + half_Q1, b.center[:, 2] + half_K)
    bottom_QK = torch.maximum(a.center[:, 2, None] - half_Q1, b.center[:, 2] - half_K)
    shared_QK = iou_QK / (1 + iou_QK) * (area_Q1 + area_K) * (top_QK - bottom_QK).clamp(min=0)
    return shared_QK / (2 * half_Q1 * area_Q1 + 2 * half_K * area_K - shared_QK).clamp(min=1e-9)


@torch.no_grad()
def matching_cost(logits_QN: Tensor, boxes: Boxes, truth: Boxes, grid: BEVGrid) -> Tensor:
    """[Q, K] cost of every query for every box: focal loss of the class, distance in widths of the grid, overlap."""
    right, wrong = (sigmoid_focal_loss(logits_QN, torch.full_like(logits_QN, value)) for value in (1, 0))
    width_2 = logits_QN.new_tensor([grid.x[1] - grid.x[0], grid.y[1] - grid.y[0]])
    away_QK2 = (boxes.center[:, None, :2] - truth.center[:, :2]).abs() / width_2
    cost_QK = _CLASS_COST * (right - wrong)[:, truth.label] + _CENTER_COST * away_QK2.sum(-1)
    return (cost_QK - _OVERLAP_COST * box_overlap(boxes, truth)).nan_to_num(_NEVER, _NEVER, -_NEVER)


def pair_up(costs: Sequence[Tensor]) -> Pairs:
    """The cheapest matching of every layer of every sample.

    Args:
        costs: [L, Q, K] of each sample, K its own. They are brought to the host at once.
    """
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    ends, first, found = np.cumsum([cost.numel() for cost in costs]), 0, []
    for sample, (cost, end) in enumerate(zip(costs, ends, strict=True)):
        for layer, cost_QK in enumerate(flat[end - cost.numel() : end].reshape(cost.shape)):
            query, box = assign(cost_QK)
            found.append(np.stack([np.full_like(query, layer), np.full_like(query, sample), query, box + first]))
        first += cost.shape[2]
    return Pairs(*torch.from_numpy(np.concatenate(found, axis=1)).to(costs[0].device))


def assign(cost_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cheapest min(Q, K) pairs."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    return linear_sum_assignment(cost_QK)
