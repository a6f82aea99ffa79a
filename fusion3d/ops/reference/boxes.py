"""Twins of what is done with oriented boxes. Letters: N K boxes, P points or pairs."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_PAIRS_AT_ONCE = 1 << 18  # bounds the memory of one pass to some 100 MB
_LARGEST = 1e100  # [m] what is larger counts as infinite, so that areas are finite


def rectangles(boxes: Tensor, snap: bool = False) -> tuple[Tensor, Tensor]:
    """Make rectangles ready.

    Args:
        boxes: [P, 5] float: x, y, length, width, yaw.
        snap: turn each to the nearest right angle.

    Returns:
        [P, 6] float64: x, y, half length, half width, cosine and sine of the yaw; and [P] bool, whether it has an area
        and is finite. One that is not has a unit square in its place.
    """
    boxes = boxes.double()
    exists = (boxes.abs() <= _LARGEST).all(1) & (boxes[:, 2:4] > 0).all(1)
    boxes = torch.where(exists[:, None], boxes, boxes.new_tensor([0.0, 0, 1, 1, 0]))
    half, cos, sin = boxes[:, 2:4] / 2, boxes[:, 4].cos(), boxes[:, 4].sin()
    if snap:
        half = torch.where((sin.abs() > cos.abs() + 1e-9)[:, None], half.flip(1), half)
        cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
    return torch.cat([boxes[:, :2], half, cos[:, None], sin[:, None]], dim=1), exists


def overlap_area(a: Tensor, b: Tensor) -> Tensor:
    """Area in which rectangle ``a[i]`` and rectangle ``b[i]`` overlap; differentiable.

    In the frame of ``a``, a column's overlap is the height of ``b``'s upper edge limited to [-hy, hy], less that of its
    lower edge. So the area is a sum over ``b``'s edges of the integrals of those limited heights, within [-hx, hx].
    Every step is continuous.

    Args:
        a: [P, 6] from ``rectangles``.
        b: [P, 6].

    Returns:
        [P] float64 [m^2].
    """
    x, y = (b[:, :2] - a[:, :2]).unbind(1)
    _, _, hx, hy, cos_a, sin_a = a.unbind(1)
    _, _, length, width, cos_b, sin_b = b.unbind(1)
    cx, cy = cos_a * x + sin_a * y, cos_a * y - sin_a * x
    cos, sin = cos_a * cos_b + sin_a * sin_b, cos_a * sin_b - sin_a * cos_b
    ux, uy, vx, vy = length * cos, length * sin, -width * sin, width * cos
    total = (
        _edge_integral(cx + ux + vx, cy + uy + vy, -2 * ux, -2 * uy, hx, hy)
        + _edge_integral(cx - ux + vx, cy - uy + vy, -2 * vx, -2 * vy, hx, hy)
        + _edge_integral(cx - ux - vx, cy - uy - vy, 2 * ux, 2 * uy, hx, hy)
        + _edge_integral(cx + ux - vx, cy + uy - vy, 2 * vx, 2 * vy, hx, hy)
    )
    return (-total).clamp(min=0)


def _edge_integral(x0: Tensor, y0: Tensor, dx: Tensor, dy: Tensor, hx: Tensor, hy: Tensor) -> Tensor:
    """Integral of y limited to [-hy, hy] along an edge from (x0, y0), over its part in |x| <= hx."""
    per_x = 1 / torch.where(dx == 0, 1.0, dx)
    u0, u1 = x0.clamp(-hx, hx), (x0 + dx).clamp(-hx, hx)
    v0 = y0 + ((u0 - x0) * per_x).clamp(0, 1) * dy
    v1 = y0 + ((u1 - x0) * per_x).clamp(0, 1) * dy
    w0, w1 = v0.clamp(-hy, hy), v1.clamp(-hy, hy)
    dv = v1 - v0
    per_v = 1 / torch.where(dv == 0, 1.0, dv)
    first, last = ((w0 - v0) * per_v).clamp(0, 1), ((v1 - w1) * per_v).clamp(0, 1)
    return (u1 - u0) * 0.5 * (w0 + w1 + (first - last) * (w0 - w1))


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """[P] float64 of rectangles that are ready."""
    overlap = overlap_area(a, b)
    whole = 4 * a[:, 2] * a[:, 3] + 4 * b[:, 2] * b[:, 3] - overlap
    return (overlap / torch.where(whole > 0, whole, 1.0)).clamp(0, 1)


def box_iou_bev_aligned(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union row by row (see ``fusion3d.ops.box_iou_bev_aligned``)."""
    (ready_a, exists_a), (ready_b, exists_b) = rectangles(a), rectangles(b)
    return torch.where(exists_a & exists_b, _iou(ready_a, ready_b), 0.0).to(a.dtype)


def box_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair (see ``fusion3d.ops.box_iou_bev``)."""
    (ready_a, exists_a), (ready_b, exists_b) = rectangles(a), rectangles(b)
    near = _near(ready_a, ready_b) & exists_a[:, None] & exists_b[None]
    return _pair_iou(ready_a, ready_b, near).to(a.dtype)


def _near(a: Tensor, b: Tensor) -> Tensor:
    """[N, K] whether the circles around two rectangles meet."""
    reach = (a[:, None, 2:4].norm(dim=2) + b[None, :, 2:4].norm(dim=2)) * (1 + 1e-12)
    return _squared_distance(a, b) < reach**2


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """[N, K] of the centres."""
    dx, dy = a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1]
    return dx * dx + dy * dy


def _pair_iou(a: Tensor, b: Tensor, wanted: Tensor) -> Tensor:
    """[N, K] float64 intersection over union where ``wanted``, 0 elsewhere."""
    iou = torch.zeros(wanted.shape, dtype=torch.float64, device=a.device)
    for pairs in wanted.nonzero().split(_PAIRS_AT_ONCE):
        i, j = pairs.unbind(1)
        iou[i, j] = _iou(a[i], b[j])
    return iou


def nms_bev(
    boxes: Tensor, scores: Tensor, labels: Tensor, thresholds: list[float], max_out: int, metric: str
) -> tuple[Tensor, Tensor]:
    """Greedy suppression per label (see ``fusion3d.ops.nms_bev``); reads the boxes' clashes on the host."""
    order = torch.argsort(torch.where(scores.isnan(), -math.inf, scores), descending=True, stable=True)
    order = order[torch.argsort(scores[order].isnan(), stable=True)]  # NaN comes after minus infinity
    limits = torch.tensor(thresholds, dtype=torch.float64, device=boxes.device)
    known = labels[order] >= 0
    if len(limits) > 1:
        known &= labels[order] < len(limits)
        known &= ~limits[labels[order].clamp(0, len(limits) - 1)].isnan()
    order = order[known]
    boxes, labels = boxes[order].detach(), labels[order]
    limit = limits.expand(len(order)) if len(limits) == 1 else limits[labels]
    clash = (labels[:, None] == labels[None]).triu(1)
    if metric == "circle":
        center = boxes[:, :2].double()
        clash &= _squared_distance(center, center) < limit[:, None] ** 2
    else:
        ready, exists = rectangles(boxes, snap=metric == "axis")
        clash &= exists[:, None] & exists[None] & _near(ready, ready)
        clash &= _pair_iou(ready, ready, clash) > limit[:, None]
    rows = clash.cpu().numpy()  # the greedy choice is sequential: it is made on the host, after one copy
    alive = np.ones(len(order), dtype=bool)
    chosen: list[int] = []
    for i in range(len(order)):
        if len(chosen) == max_out:
            break
        if alive[i]:
            chosen.append(i)
            alive &= ~rows[i]
    keep = torch.full((max_out,), -1, dtype=torch.int64, device=order.device)
    keep[: len(chosen)] = order[torch.tensor(chosen, dtype=torch.int64, device=order.device)]
    return keep, torch.tensor(len(chosen), device=order.device)


def points_in_boxes(
    points: Tensor, boxes: Tensor, point_batch: Tensor | None, box_batch: Tensor | None, margin: float
) -> tuple[Tensor, Tensor]:
    """First box of each point, points of each box (see ``fusion3d.ops.points_in_boxes``)."""
    points, boxes = points[:, :3].double(), boxes.double()
    first = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    count = torch.zeros(len(boxes), dtype=torch.int64, device=points.device)
    half = boxes[:, 3:6] / 2 + margin
    cos, sin = boxes[:, 6].cos()[:, None], boxes[:, 6].sin()[:, None]
    step = max(_PAIRS_AT_ONCE // max(len(points), 1), 1)
    for begin in range((len(boxes) - 1) // step * step, -1, -step):  # backwards: the first box is written last
        some = slice(begin, begin + step)
        x, y, z = (points[None] - boxes[some, None, :3]).unbind(2)
        along, across = cos[some] * x + sin[some] * y, cos[some] * y - sin[some] * x
        inside = torch.stack([along, across, z], dim=2).abs() <= half[some, None]
        inside = inside.all(2)
        if point_batch is not None and box_batch is not None:
            inside &= point_batch[None] == box_batch[some, None]
        count[some] = inside.sum(1)
        first = torch.where(inside.any(0), inside.byte().argmax(0) + begin, first)
    return first, count
