"""Oriented boxes seen from above: overlap and suppression.

Letters: N K boxes. Coordinates are in metres and radians.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import reference
from fusion3d.ops.checks import FLOATS, check, check_boxes


def box_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Exact intersection over union of every pair of oriented rectangles. Computed in float64; no gradient.

    Args:
        a: [N, 5] float: x, y [m], length, width [m], yaw [rad].
        b: [K, 5] float.

    Returns:
        [N, K] in the dtype of ``a``; 0 for boxes that only touch or have no area.

    Raises:
        ValueError: wrong shape or dtype.
    """
    check_boxes(a, "a")
    check_boxes(b, "b")
    return reference.box_iou_bev(a.detach(), b.detach())


def nms_bev(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float | Sequence[float] | Tensor,
    max_out: int,
    metric: Literal["rotated", "circle"] = "rotated",
) -> Tensor:
    """Non-maximum suppression: a box goes when a better one of its class is too close.

    Args:
        boxes: [N, 5] float: x, y [m], length, width [m], yaw [rad].
        scores: [N] float.
        labels: [N] int64; boxes of different labels never suppress one another.
        threshold: largest allowed intersection over union (rotated), or smallest allowed distance of centres
            [m] (circle); one value for all or one for each label.
        max_out: largest number of boxes kept, over all classes.
        metric: what "too close" means.

    Returns:
        [at most max_out] int64 indices, by descending score (equal scores by ascending index).

    Raises:
        ValueError: wrong shape, dtype or metric, or a label without a threshold.

    Source: the circle variant is CenterPoint's (Yin et al. 2021), with the radius not squared.
    """
    check_boxes(boxes, "boxes")
    check(scores, "scores", "N", FLOATS)
    check(labels, "labels", "N", (torch.int64,))
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores, {len(labels)} labels; expected as many of each")
    if metric not in ("rotated", "circle"):
        raise ValueError(f"metric: found {metric!r}; expected 'rotated' or 'circle'")
    limits = torch.as_tensor(threshold, dtype=torch.float64, device=boxes.device)
    if limits.ndim == 0:
        limits = limits.expand(len(boxes))
    else:
        known = len(limits)
        if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < known):
            raise ValueError(
                f"labels: found values in [{int(labels.min())}, {int(labels.max())}]; expected [0, {known}), "
                "one threshold for each label"
            )
        limits = limits[labels]
    return reference.nms_bev(boxes.detach(), scores.detach(), labels, limits, max_out, metric)
