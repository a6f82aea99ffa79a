"""Oriented boxes: overlap seen from above, suppression, and the points that they hold.

Letters: N K boxes, P points or pairs. Coordinates are in metres and radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, check_boxes, shape_of

Metric = Literal["rotated", "circle", "axis"]

_METRICS = ("rotated", "circle", "axis")  # the kernels know them by their places
_MOST_THRESHOLDS = 256


@dataclass(frozen=True)
class KeptBoxes:
    """Which boxes suppression keeps, best first, in a list that is padded to the length asked for."""

    index: Tensor  # [max_out] int64, rows of the input; -1 past the last one kept
    num_kept: Tensor  # int64 without dimensions

    def trim(self) -> Tensor:
        """[num_kept] int64, the indices without padding; takes one host read on CUDA."""
        return self.index[: int(self.num_kept)]


@dataclass(frozen=True)
class PointsInBoxes:
    """Which points are in which boxes."""

    box: Tensor  # [P] int64, first box that holds the point, -1 where none does
    count: Tensor  # [N] int64, points in each box; a point in several boxes counts in each


def box_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Exact intersection over union of every pair of oriented rectangles.

    Computed in float64 whatever the dtype; no gradient (``box_iou_bev_aligned`` has one).

    Args:
        a: [N, 5] float: x, y [m], length, width [m], yaw [rad].
        b: [K, 5] float.

    Returns:
        [N, K] in the dtype of ``a``. 0 for boxes that only touch, and for those without area (a size that is not
        above 0) or not finite (NaN, or past 1e100).

    Raises:
        ValueError: wrong shape or dtype, or two devices.
    """
    dtype = a.dtype
    a, b = _two_lists(a, b)
    a, b = a.detach(), b.detach()
    if library.has_kernel(a.device):
        return torch.ops.fusion3d.box_iou_bev(a.contiguous(), b.contiguous()).to(dtype)
    return reference.box_iou_bev(a, b).to(dtype)


def box_iou_bev_aligned(a: Tensor, b: Tensor) -> Tensor:
    """Exact intersection over union of rectangle ``a[i]`` and rectangle ``b[i]``, differentiable: for losses.

    Computed in float64 whatever the dtype; autocast leaves it alone. Where edges coincide the area has a kink, and the
    kernel's gradient is the mean of its two slopes: it is 0 for equal boxes, where the overlap is best. Boxes that do
    not touch have gradient 0: add a term that draws them together.

    Args:
        a: [P, 5] float: x, y [m], length, width [m], yaw [rad].
        b: [P, 5] float.

    Returns:
        [P] in the dtype of ``a``; differentiable with respect to both. 0 with gradient 0 for boxes without area (a size
        that is not above 0) or not finite.

    Raises:
        ValueError: wrong shape or dtype, or two devices.

    Source: the loss is that of Zhou et al., "IoU Loss for 2D/3D Object Detection" (2019).
    """
    dtype = a.dtype
    a, b = _two_lists(a, b)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"a has {a.shape[0]} boxes and b {b.shape[0]}; expected as many of each")
    if library.has_kernel(a.device):
        return torch.ops.fusion3d.box_iou_bev_aligned(a.contiguous(), b.contiguous()).to(dtype)
    return reference.box_iou_bev_aligned(a, b).to(dtype)


def _two_lists(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked, in one dtype."""
    check_boxes(a, "a")
    check_boxes(b, "b")
    if a.device != b.device:
        raise ValueError(f"a is on {a.device} and b on {b.device}; expected one device")
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def nms_bev(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    threshold: float | Sequence[float] | np.ndarray | Tensor,
    max_out: int,
    metric: Metric = "rotated",
) -> KeptBoxes:
    """Non-maximum suppression: a box goes when a better one of its label is too close.

    Args:
        boxes: [N, 5] float: x, y [m], length, width [m], yaw [rad]; at most 2^18 on CUDA.
        scores: [N] float; NaN is worse than all else.
        labels: [N] int64; boxes of different labels never suppress one another. A label below 0 says that the row is no
            box: it is never kept.
        threshold: largest allowed intersection over union (rotated, axis), or smallest allowed distance of centres
            [m] (circle); one value for all or one for each label, at most 256. ¶ A tensor on CUDA is read on the host.
        max_out: largest number of boxes kept, over all labels.
        metric: what "too close" means: ``rotated`` and ``axis`` measure intersection over union, ``axis`` of the boxes
            turned to the nearest right angle; ``circle`` measures the distance of centres.

    Returns:
        The boxes kept, by descending score (equal scores by ascending index), in a list of max_out rows: nothing is
        read back on CUDA, so a CUDA graph can hold it; ``trim`` gives the indices alone. Boxes without area or not
        finite overlap nothing and are kept.

    Raises:
        ValueError: wrong shape, dtype, device or metric, a threshold that is negative or NaN, or (on the CPU, where it
            is cheap) a label without a threshold; on CUDA such a row is no box.

    Source: the circle variant is CenterPoint's (Yin et al. 2021), with the radius not squared.
    """
    check_boxes(boxes, "boxes")
    check(scores, "scores", "N", FLOATS)
    check(labels, "labels", "N", (torch.int64,))
    rows = [tensor.shape[0] for tensor in (boxes, scores, labels)]  # len() would fix it where shapes are traced
    if not rows[0] == rows[1] == rows[2]:
        raise ValueError(f"{rows[0]} boxes, {rows[1]} scores, {rows[2]} labels; expected as many of each")
    if not boxes.device == scores.device == labels.device:
        raise ValueError(f"boxes on {boxes.device}, scores on {scores.device}, labels on {labels.device}; expected one")
    if metric not in _METRICS:
        raise ValueError(f"metric: found {metric!r}; expected 'rotated', 'circle' or 'axis'")
    if max_out < 0:
        raise ValueError(f"max_out: found {max_out}; expected 0 or more")
    limits = _thresholds(threshold, labels)
    boxes, scores = boxes.detach(), scores.detach()
    if library.has_kernel(boxes.device):
        place = _METRICS.index(metric)
        boxes, scores, labels = boxes.contiguous(), scores.contiguous(), labels.contiguous()
        return KeptBoxes(*torch.ops.fusion3d.nms_bev(boxes, scores, labels, limits, max_out, place))
    return KeptBoxes(*reference.nms_bev(boxes, scores, labels, limits, max_out, metric))


def _thresholds(threshold: float | Sequence[float] | np.ndarray | Tensor, labels: Tensor) -> list[float]:
    """One for all labels, or one for each of them."""
    if isinstance(threshold, Tensor | np.ndarray):
        threshold = threshold.tolist()
    if isinstance(threshold, Sequence):
        limits = [float(value) for value in threshold]
        known = len(limits)
        if not 1 <= known <= _MOST_THRESHOLDS:
            raise ValueError(f"threshold: found {known} values; expected 1 to {_MOST_THRESHOLDS}")
        if labels.device.type == "cpu" and not torch.compiler.is_compiling() and len(labels):
            largest = int(labels.max())
            if largest >= known:
                raise ValueError(f"labels: found {largest}; expected less than {known}, one threshold for each label")
    else:
        limits = [float(threshold)]
    if not all(value >= 0 for value in limits):
        raise ValueError(f"threshold: found {limits}; expected 0 or more")
    # One limit alone would hold for every label, to the kernels; NaN says that label 1 has none.
    return [*limits, math.nan] if isinstance(threshold, Sequence) and len(limits) == 1 else limits


def points_in_boxes(
    points: Tensor,
    boxes: Tensor,
    point_batch: Tensor | None = None,
    box_batch: Tensor | None = None,
    margin: float = 0.0,
) -> PointsInBoxes:
    """Which box holds each point, and how many points each box holds (faces included).

    Args:
        points: [P, 3 or more] float: x, y, z [m], and what else a point has.
        boxes: [N, 7] float: centre x, y, z, length, width, height [m], yaw [rad].
        point_batch: [P] int64, sample of each point; a box holds points of its own sample alone. None: one sample.
        box_batch: [N] int64; given with ``point_batch``.
        margin: metres added on every side.

    Returns:
        First box of each point and number of points of each box; nothing is in a box with NaN or a size below 0.

    Raises:
        ValueError: wrong shape or dtype, two devices, or one batch index without the other.
    """
    check(points, "points", "PC", FLOATS)
    check(boxes, "boxes", "N7", FLOATS)
    if points.shape[1] < 3:
        raise ValueError(f"points has shape {shape_of(points)}; expected [P, 3 or more]: x, y, z")
    if boxes.shape[1] != 7:
        raise ValueError(f"boxes has shape {shape_of(boxes)}; expected [N, 7]: x, y, z, length, width, height, yaw")
    if (point_batch is None) != (box_batch is None):
        raise ValueError("point_batch and box_batch: found one; expected both or neither")
    places = {points.device, boxes.device}
    if point_batch is not None and box_batch is not None:
        check(point_batch, "point_batch", "P", (torch.int64,))
        check(box_batch, "box_batch", "N", (torch.int64,))
        if point_batch.shape[0] != points.shape[0] or box_batch.shape[0] != boxes.shape[0]:
            raise ValueError(
                f"{points.shape[0]} points with {point_batch.shape[0]} in point_batch, {boxes.shape[0]} boxes with "
                f"{box_batch.shape[0]} in box_batch; expected as many of each"
            )
        point_batch, box_batch = point_batch.contiguous(), box_batch.contiguous()
        places |= {point_batch.device, box_batch.device}
    if len(places) > 1:
        raise ValueError(f"points, boxes and their batch indices are on {sorted(map(str, places))}; expected one")
    dtype = torch.promote_types(points.dtype, boxes.dtype)
    points, boxes = points.detach().to(dtype), boxes.detach().to(dtype)
    if library.has_kernel(points.device):
        points, boxes = points.contiguous(), boxes.contiguous()
        return PointsInBoxes(*torch.ops.fusion3d.points_in_boxes(points, boxes, point_batch, box_batch, margin))
    return PointsInBoxes(*reference.points_in_boxes(points, boxes, point_batch, box_batch, margin))


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    @torch.library.register_fake("fusion3d::box_iou_bev")
    def _(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(a.shape[0], b.shape[0])

    @torch.library.register_fake("fusion3d::box_iou_bev_aligned")
    def _(a: Tensor, b: Tensor) -> Tensor:
        return a.new_empty(a.shape[0])

    @torch.library.register_fake("fusion3d::box_iou_bev_aligned_backward")
    def _(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a.new_empty(a.shape), b.new_empty(b.shape)

    @torch.library.register_fake("fusion3d::nms_bev")
    def _(boxes: Tensor, scores: Tensor, labels: Tensor, thresholds: list[float], max_out: int, metric: int):
        return labels.new_empty(max_out), labels.new_empty(())

    @torch.library.register_fake("fusion3d::points_in_boxes")
    def _(points: Tensor, boxes: Tensor, point_batch: Tensor | None, box_batch: Tensor | None, margin: float):
        whole = {"dtype": torch.int64, "device": points.device}
        return points.new_empty(points.shape[0], **whole), points.new_empty(boxes.shape[0], **whole)

    def keep(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.fusion3d.box_iou_bev_aligned_backward(grad.contiguous(), *ctx.saved_tensors)

    torch.library.register_autograd("fusion3d::box_iou_bev_aligned", backward, setup_context=keep)
    library.not_twice_differentiable("box_iou_bev_aligned_backward")


if not library.PROBLEM:
    _register()
