"""Twins of what is done with oriented boxes seen from above. Letters: N K boxes, P pairs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

# Distance [m] within which an edge counts as lying on another box's edge; far above float64 rounding at 1 km.
_TOUCH = 1e-9
_PAIRS_AT_ONCE = 1 << 18  # bounds the memory of one pass over box pairs to some 100 MB


def pair_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Area in which box ``a[i]`` and box ``b[i]`` overlap.

    By Green's theorem: the outline of the intersection of two convex shapes is what of each outline lies
    inside the other, and the sum of cross(start, end) / 2 over those pieces is its area. Nothing is sorted.

    Args:
        a: [P, 5] float64: x, y, length, width, yaw.
        b: [P, 5] float64.

    Returns:
        [P] float64 area [m^2].
    """
    # Coordinates relative to the first box keep the products small wherever the boxes are.
    shift = torch.cat([a[:, :2], torch.zeros_like(a[:, 2:])], dim=1)
    corners_a, corners_b = _corners(a - shift), _corners(b - shift)
    return (_outline_inside(corners_a, corners_b, True) + _outline_inside(corners_b, corners_a, False)).clamp(min=0)


def _corners(boxes: Tensor) -> Tensor:
    """[P, 4, 2] corners, counter-clockwise."""
    half = boxes[:, None, 2:4] / 2 * boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos, sin = torch.cos(boxes[:, 4, None]), torch.sin(boxes[:, 4, None])
    x, y = half[..., 0], half[..., 1]
    return boxes[:, None, :2] + torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _outline_inside(outline: Tensor, other: Tensor, owns_shared: bool) -> Tensor:
    """Half the sum of cross(start, end) over the parts of the outline's edges that lie in the other box.

    Where two edges coincide and run the same way, only the outline that ``owns_shared`` counts them; where
    they run opposite ways the boxes merely touch, and neither does.
    """
    start, edge = outline, outline.roll(-1, dims=1) - outline  # [P, 4, 2]
    side = other.roll(-1, dims=1) - other
    length = side.norm(dim=-1).clamp(min=1e-300)
    # [P, edge, side]: how far inside of each side each edge starts, and how that changes along the edge.
    distance = _cross(side[:, None], start[:, :, None] - other[:, None]) / length[:, None]
    slope = _cross(side[:, None], edge[:, :, None]) / length[:, None]
    same_way = (side[:, None] * edge[:, :, None]).sum(-1) > 0
    distance = distance + torch.where(same_way & owns_shared, _TOUCH, -_TOUCH)
    crossing = -distance / torch.where(slope == 0, 1.0, slope)
    enter = torch.where(slope > 0, crossing, 0.0).amax(-1).clamp(min=0)
    leave = torch.where(slope < 0, crossing, 1.0).amin(-1).clamp(max=1)
    outside = ((slope == 0) & (distance < 0)).any(-1) | (leave <= enter)
    begin, end = start + enter[..., None] * edge, start + leave[..., None] * edge
    return torch.where(outside, 0.0, _cross(begin, end)).sum(-1) / 2


def box_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair of oriented rectangles (see ``fusion3d.ops.box_iou_bev``)."""
    a64, b64 = a.double(), b.double()
    reach = a64[:, None, 2:4].norm(dim=2) / 2 + b64[None, :, 2:4].norm(dim=2) / 2
    return _pair_iou(a64, b64, _distance(a64, b64) < reach).to(a.dtype)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """[N, K] distances between the centres."""
    return torch.cdist(a[:, :2], b[:, :2], compute_mode="donot_use_mm_for_euclid_dist")


def _pair_iou(a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
    """[N, K] float64 intersection over union where ``wanted``, 0 elsewhere."""
    iou = torch.zeros(wanted.shape, dtype=torch.float64, device=a.device)
    for pairs in wanted.nonzero().split(_PAIRS_AT_ONCE):
        i, j = pairs.unbind(1)
        overlap = pair_overlap(a[i], b[j])
        union = a[i, 2] * a[i, 3] + b[j, 2] * b[j, 3] - overlap
        iou[i, j] = torch.where(union > 0, overlap / union, 0.0).clamp(max=1)
    return iou


def nms_bev(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: Tensor,
    max_out: int,
    metric: Literal["rotated", "circle"],
) -> Tensor:
    """Greedy suppression per class (see ``fusion3d.ops.nms_bev``); ``threshold`` is [N], one for each box."""
    order = torch.argsort(scores, descending=True, stable=True)
    boxes, labels, threshold = boxes[order].double(), labels[order], threshold[order].double()
    distance = _distance(boxes, boxes)
    rivals = (labels[:, None] == labels[None]).triu(1)
    if metric == "rotated":
        radius = boxes[:, 2:4].norm(dim=1) / 2
        near = rivals & (distance < radius[:, None] + radius[None])
        clash = near & (_pair_iou(boxes, boxes, near) > threshold[:, None])
    else:
        clash = rivals & (distance < threshold[:, None])
    clash_rows = clash.cpu().numpy()  # the greedy choice is sequential: it is made on the host, after one copy
    alive = np.ones(len(boxes), dtype=bool)
    keep: list[int] = []
    for i in range(len(boxes)):
        if len(keep) == max_out:
            break
        if alive[i]:
            keep.append(i)
            alive &= ~clash_rows[i]
    return order[torch.tensor(keep, dtype=torch.int64, device=order.device)]
