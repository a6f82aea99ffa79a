"""Operations on the bird's-eye-view grid: the compiled kernel where there is one, else its pure-torch twin.

Letters: M images, D depth bins, H W rows and columns, C channels, P points, N K boxes, S kept
samples of a plan. Coordinates are in ego: metres and radians. Wrong shapes and dtypes raise ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import library, reference

__all__ = ["BEVPoolPlan", "bev_pool", "bev_pool_plan", "box_iou_bev", "nms_bev", "scatter"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class BEVPoolPlan:
    """Which samples of the camera frustums fall in which cell. It depends on the calibration alone."""

    cell: Tensor  # [M, D, H, W] int32, flat cell of each sample, -1 outside of the grid
    sample: Tensor  # [S] int32, flat index in [M, D, H, W] of the samples inside, ordered by cell
    pixel: Tensor  # [S] int32, flat index in [M, H, W] of the same samples
    cell_ptr: Tensor  # [cells + 1] int32, the samples of cell i are [cell_ptr[i], cell_ptr[i + 1])

    @property
    def num_cells(self) -> int:
        """Cells of the grid, over the whole batch."""
        return self.cell_ptr.shape[0] - 1


def bev_pool_plan(cell: Tensor, num_cells: int) -> BEVPoolPlan:
    """Order the samples of the camera frustums by the cell they fall in.

    Args:
        cell: [M, D, H, W] integer, flat cell of each sample, or -1 where it is outside of the grid.
        num_cells: cells of the grid, over the whole batch (B * Y * X).

    Returns:
        The plan for ``bev_pool``. Samples of one cell keep their order: results are reproducible to the bit.

    Raises:
        ValueError: wrong shape or dtype, a cell outside of [-1, num_cells), or 2^31 or more samples or cells.
    """
    _check(cell, "cell", "MDHW", (torch.int32, torch.int64))
    _, bins, rows, cols = cell.shape
    limit = torch.iinfo(torch.int32).max
    if num_cells < 0 or max(cell.numel(), num_cells) >= limit:
        raise ValueError(f"cell: {cell.numel()} samples and {num_cells} cells; expected each in [0, {limit})")
    if cell.numel() and not (-1 <= int(cell.min()) and int(cell.max()) < num_cells):
        raise ValueError(
            f"cell: found values in [{int(cell.min())}, {int(cell.max())}]; "
            f"expected -1 (outside of the grid) or less than {num_cells}"
        )
    flat = cell.reshape(-1)
    inside = torch.nonzero(flat >= 0)[:, 0]
    ordered, order = torch.sort(flat[inside].long(), stable=True)
    sample = inside[order]
    area = max(rows * cols, 1)
    pixel = sample // max(bins * area, 1) * area + sample % area
    cell_ptr = torch.searchsorted(ordered, torch.arange(num_cells + 1, device=cell.device))
    return BEVPoolPlan(
        cell=cell.to(torch.int32).contiguous(),
        sample=sample.to(torch.int32),
        pixel=pixel.to(torch.int32),
        cell_ptr=cell_ptr.to(torch.int32),
    )


def bev_pool(depth_MDHW: Tensor, feat_MCHW: Tensor, plan: BEVPoolPlan) -> Tensor:
    """Lift-splat's pooling: in each cell, the sum over its samples of depth probability times pixel feature.

    The frustum of features is never materialised. Sums are in float32 (float64 for float64) and reproducible
    to the bit. Under autocast both inputs are cast to its type.

    Args:
        depth_MDHW: [M, D, H, W] depth distribution.
        feat_MCHW: [M, C, H, W] features, same dtype and device (channels-last memory saves a copy).
        plan: from ``bev_pool_plan``.

    Returns:
        [cells, C]; cells without samples are 0. Differentiable with respect to depth and features.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit one another.

    Source: Philion and Fidler, "Lift, Splat, Shoot" (2020); index lists as in BEVDet's bev_pool_v2.
    """
    _check(depth_MDHW, "depth", "MDHW", _FLOATS)
    _check(feat_MCHW, "feat", "MCHW", _FLOATS)
    device = depth_MDHW.device
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        depth_MDHW, feat_MCHW = depth_MDHW.to(dtype), feat_MCHW.to(dtype)
    if depth_MDHW.dtype != feat_MCHW.dtype:
        raise ValueError(
            f"depth is {depth_MDHW.dtype} and feat {feat_MCHW.dtype}; expected one dtype: cast one of them"
        )
    if not device == feat_MCHW.device == plan.cell.device:
        raise ValueError(f"depth is on {device}, feat on {feat_MCHW.device}, plan on {plan.cell.device}; expected one")
    if depth_MDHW.shape != plan.cell.shape:
        raise ValueError(f"depth has shape {_shape(depth_MDHW)}; expected that of the plan, {_shape(plan.cell)}")
    num_images, _, rows, cols = depth_MDHW.shape
    if (feat_MCHW.shape[0], *feat_MCHW.shape[2:]) != (num_images, rows, cols):
        raise ValueError(f"feat has shape {_shape(feat_MCHW)}; expected [{num_images}, C, {rows}, {cols}] as depth")
    feat_MHWC = feat_MCHW.permute(0, 2, 3, 1)
    if library.has_kernel(device):
        return torch.ops.fusion3d.bev_pool(
            depth_MDHW.contiguous(), feat_MHWC.contiguous(), plan.cell, plan.sample, plan.pixel, plan.cell_ptr
        )
    return reference.bev_pool(depth_MDHW, feat_MHWC, plan.sample, plan.pixel, plan.cell_ptr)


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
    _check(values, "values", "PC", _FLOATS)
    _check(index, "index", "P", (torch.int64,))
    if len(index) != len(values):
        raise ValueError(f"index has {len(index)} entries; expected one for each of the {len(values)} rows of values")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce: found {reduce!r}; expected 'sum' or 'mean'")
    if index.device.type == "cpu" and len(index) and not torch.compiler.is_compiling():
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= num_cells:
            raise ValueError(f"index: found values in [{low}, {high}]; expected [0, {num_cells})")
    return reference.scatter(values, index, num_cells, reduce)


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
    _check_boxes(a, "a")
    _check_boxes(b, "b")
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
    _check_boxes(boxes, "boxes")
    _check(scores, "scores", "N", _FLOATS)
    _check(labels, "labels", "N", (torch.int64,))
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


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _check(tensor: Tensor, name: str, letters: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.ndim != len(letters):
        raise ValueError(f"{name} has shape {_shape(tensor)}; expected [{', '.join(letters)}]")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}; expected {' or '.join(str(d) for d in dtypes)}")


def _check_boxes(boxes: Tensor, name: str) -> None:
    _check(boxes, name, "N5", _FLOATS)
    if boxes.shape[1] != 5:
        raise ValueError(f"{name} has shape {_shape(boxes)}; expected [N, 5]: x, y, length, width, yaw")
