"""Lift-splat's pooling of camera features into the cells of a grid.

Letters: M images, D depth bins, H W rows and columns, C channels, S samples, M * D * H * W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, check_one_device, check_one_dtype, in_autocast, shape_of
from fusion3d.ops.segments import segment_plan

_TILE = 8  # cells along a side of the tiles in which the grid is walked
_PARTS = 1024  # of the walk; many times the processors that share them out
_ROW_WORK = 2  # what writing a cell's row takes, in samples


@dataclass(frozen=True)
class BEVPoolPlan:
    """Which samples of the camera frustums fall in which cell. It depends on the calibration alone."""

    cell: Tensor  # [M, D, H, W] int32, flat cell of each sample, -1 outside of the grid
    sample: Tensor  # [S] int32, flat index in [M, D, H, W], ordered by cell; those outside of the grid come last
    pixel: Tensor  # [S] int32, flat index in [M, H, W] of the same samples
    cell_ptr: Tensor  # [cells + 1] int32, the samples of cell i are [cell_ptr[i], cell_ptr[i + 1])
    order: Tensor  # [cells] int32, the walk over the cells, tile by tile
    part: Tensor  # [parts + 1] int32, the cells of part i are order[part[i]:part[i + 1]]: parts of about equal work

    @property
    def num_cells(self) -> int:
        """Cells of the grid, over the whole batch."""
        return self.cell_ptr.shape[0] - 1


def bev_pool_plan(cell: Tensor, num_cells: int, cols: int | None = None) -> BEVPoolPlan:
    """Order the samples of the camera frustums by the cell they fall in.

    Args:
        cell: [M, D, H, W] int32 or int64, flat cell of each sample, or -1 where it is outside of the grid.
        num_cells: cells of the grid, over the whole batch (B * Y * X).
        cols: cells in a row of the grid (X), so that pooling can walk it in tiles. It changes the speed alone.

    Returns:
        The plan for ``bev_pool``. Samples of one cell keep their order: results are reproducible to the bit.
        Made without a host read on CUDA.

    Raises:
        ValueError: wrong shape or dtype, 2^31 or more samples or cells, cells that do not make up whole rows, or (on
            the CPU, where it is cheap) a cell outside of [-1, num_cells).
    """
    check(cell, "cell", "MDHW", (torch.int32, torch.int64))
    _, bins, rows, columns = cell.shape
    limit = torch.iinfo(torch.int32).max
    if num_cells < 0 or max(cell.numel(), num_cells) >= limit:
        raise ValueError(f"cell: {cell.numel()} samples and {num_cells} cells; expected each in [0, {limit})")
    if cols is not None and (cols < 1 or num_cells % cols):
        raise ValueError(f"cols: found {cols} for {num_cells} cells; expected whole rows")
    groups = segment_plan(cell.reshape(-1), num_cells, keep_empty=True)
    sample, area = groups.order, rows * columns
    if library.has_kernel(cell.device):
        pixel = torch.ops.fusion3d.bev_pool_pixel(sample, bins, area)
    else:
        pixel = reference.bev_pool_pixel(sample, bins, area)
    order = _walk(num_cells, cols or num_cells, cell.device)
    return BEVPoolPlan(
        cell=groups.segment.view(cell.shape),
        sample=sample,
        pixel=pixel,
        cell_ptr=groups.ptr,
        order=order,
        part=_parts(groups.ptr, order),
    )


def _walk(num_cells: int, cols: int, device: torch.device) -> Tensor:
    """[cells] int32: the cells tile by tile; those of incomplete tiles at the right and at the bottom come last."""
    grid = torch.arange(num_cells, dtype=torch.int32, device=device).view(-1, max(cols, 1))
    down, across = grid.shape[0] // _TILE, grid.shape[1] // _TILE
    whole = grid[: down * _TILE, : across * _TILE].reshape(down, _TILE, across, _TILE).transpose(1, 2)
    right, bottom = grid[: down * _TILE, across * _TILE :], grid[down * _TILE :]
    return torch.cat([whole.reshape(-1), right.reshape(-1), bottom.reshape(-1)])


def _parts(cell_ptr: Tensor, order: Tensor) -> Tensor:
    """[parts + 1] int32: bounds in ``order`` of parts of about equal work: samples to read, and a row to write."""
    work = (cell_ptr.diff() + _ROW_WORK).index_select(0, order).cumsum(0)
    total = work[-1:] if work.shape[0] else work.new_zeros(1)
    share = torch.arange(_PARTS + 1, device=order.device) * total // _PARTS
    return torch.searchsorted(work, share, right=True).to(torch.int32)


def bev_pool(depth_MDHW: Tensor, feat_MCHW: Tensor, plan: BEVPoolPlan) -> Tensor:
    """Lift-splat's pooling: in each cell, the sum over its samples of depth probability times pixel feature.

    The frustum of features is never materialised. Sums are in float32 (float64 for float64) and reproducible
    to the bit. Under autocast both inputs are cast to its type, but for float64.

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
    check(depth_MDHW, "depth", "MDHW", FLOATS)
    check(feat_MCHW, "feat", "MCHW", FLOATS)
    device = depth_MDHW.device
    depth_MDHW, feat_MCHW = in_autocast(depth_MDHW, feat_MCHW)
    check_one_dtype(depth=depth_MDHW, feat=feat_MCHW)
    check_one_device(depth=depth_MDHW, feat=feat_MCHW, plan=plan.cell)
    if depth_MDHW.shape != plan.cell.shape:
        raise ValueError(f"depth has shape {shape_of(depth_MDHW)}; expected that of the plan, {shape_of(plan.cell)}")
    num_images, _, rows, cols = depth_MDHW.shape
    if (feat_MCHW.shape[0], *feat_MCHW.shape[2:]) != (num_images, rows, cols):
        raise ValueError(f"feat has shape {shape_of(feat_MCHW)}; expected [{num_images}, C, {rows}, {cols}] as depth")
    feat_MHWC = feat_MCHW.permute(0, 2, 3, 1)
    if library.has_kernel(device):
        return torch.ops.fusion3d.bev_pool(
            depth_MDHW.contiguous(),
            feat_MHWC.contiguous(),
            plan.cell,
            plan.sample,
            plan.pixel,
            plan.cell_ptr,
            plan.order,
            plan.part,
        )
    return reference.bev_pool(depth_MDHW, feat_MHWC, plan.sample, plan.pixel, plan.cell_ptr)


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    @torch.library.register_fake("fusion3d::bev_pool_pixel")
    def _(sample: Tensor, bins: int, area: int) -> Tensor:
        return sample.new_empty(sample.shape)

    @torch.library.register_fake("fusion3d::bev_pool")
    def _(
        depth: Tensor,
        feat: Tensor,
        cell: Tensor,
        sample: Tensor,
        pixel: Tensor,
        cell_ptr: Tensor,
        order: Tensor,
        part: Tensor,
    ) -> Tensor:
        return feat.new_empty(cell_ptr.shape[0] - 1, feat.shape[3])

    @torch.library.register_fake("fusion3d::bev_pool_backward")
    def _(grad: Tensor, depth: Tensor, feat: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return depth.new_empty(depth.shape), feat.new_empty(feat.shape)

    def keep(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        depth, feat, cell, *_ = inputs
        ctx.save_for_backward(depth, feat, cell)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, feat, cell = ctx.saved_tensors
        grads = torch.ops.fusion3d.bev_pool_backward(grad.contiguous(), depth, feat, cell)
        return (*grads, *[None] * 6)

    torch.library.register_autograd("fusion3d::bev_pool", backward, setup_context=keep)
    library.not_twice_differentiable("bev_pool_backward")


if not library.PROBLEM:
    _register()
