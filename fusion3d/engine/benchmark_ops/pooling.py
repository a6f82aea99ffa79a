"""BEV pooling against what others do: rows added by index lists, in torch or by a kernel, and cumulative sums.

Letters: M images, D depth bins, H W feature rows and columns, C channels, K samples inside the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.bev.lift import DepthBins, LiftSplat
from fusion3d.engine.benchmark_ops import atomics
from fusion3d.engine.benchmark_ops.case import Case, going_back
from fusion3d.synthetic.rig import RIG
from fusion3d.types import CAMERAS, BEVGrid, Cameras

_IMAGE = (256, 704)  # [px]
_CHANNELS = 80
_SHAPES = (((16, 44), 59, 128), ((16, 44), 118, 180), ((32, 88), 118, 360))  # feature map, depth bins, cells a side


def six_cameras() -> Cameras:
    """The cameras of the real vehicle, one sample, without images."""
    image_from_cam = np.tile(np.eye(4), (len(CAMERAS), 1, 1))
    image_from_cam[:, :3, :3] = [RIG[channel].intrinsic_at(_IMAGE) for channel in CAMERAS]
    ego_from_cam = np.stack([RIG[channel].ego_from_sensor for channel in CAMERAS])
    return Cameras(
        torch.zeros(len(CAMERAS), 3, 1, 1),
        torch.tensor(image_from_cam, dtype=torch.float32),
        torch.tensor(ego_from_cam, dtype=torch.float32),
        torch.zeros(len(CAMERAS), dtype=torch.int64),
        tuple(CAMERAS),
    )


def frustum_cells(shape: tuple[int, int], num_bins: int, cells: int) -> Tensor:
    """[M, D, H, W] int64: the cell of every frustum point between 1 and 60 m, -1 outside of 108 m x 108 m."""
    grid = BEVGrid(resolution=108 / cells)
    lift = LiftSplat(DepthBins(1.0, 60.0, 59 / num_bins), grid, _IMAGE[0] // shape[0], 1)
    cell, inside = grid.cell_of(lift.frustum(six_cameras(), shape))
    return torch.where(inside, cell, -1)


class Lists:
    """Index lists of the samples inside the grid, as BEVDet's bev_pool_v2 keeps them; the peers read these."""

    def __init__(self, cell: Tensor, num_cells: int) -> None:
        _, bins, rows, cols = cell.shape
        flat = cell.reshape(-1)
        self.num_cells = num_cells
        self.sample = torch.nonzero(flat >= 0)[:, 0]
        self.pixel = self.sample // (bins * rows * cols) * (rows * cols) + self.sample % (rows * cols)
        self.cell = flat[self.sample]
        self.short = self.sample.int(), self.pixel.int(), self.cell.int()

    def index_add(self, depth_MDHW: Tensor, feat_MHWC: Tensor) -> Tensor:
        """Weighted rows are added to their cells; on CUDA these are atomic additions."""
        rows = feat_MHWC.flatten(0, 2)[self.pixel] * depth_MDHW.reshape(-1)[self.sample][:, None]
        return rows.new_zeros(self.num_cells, rows.shape[1]).index_add_(0, self.cell, rows)

    def cumsum(self, depth_MDHW: Tensor, feat_MHWC: Tensor) -> Tensor:
        """The frustum of features, sorted by cell, summed up along it; a cell's sum is a difference of two."""
        frustum = (depth_MDHW[..., None] * feat_MHWC[:, None]).flatten(0, 3)[self.sample]
        order = self.cell.argsort()
        cell, total = self.cell[order], frustum[order].cumsum(0)
        last = torch.ones_like(cell, dtype=torch.bool)
        last[:-1] = cell[1:] != cell[:-1]
        cell, total = cell[last], total[last]
        out = total.new_zeros(self.num_cells, total.shape[1])
        out[cell] = torch.cat([total[:1], total[1:] - total[:-1]])
        return out


def _agree_sums(ours: Tensor, theirs: Tensor) -> None:
    # Cumulative sums over all samples lose digits: the tolerance is theirs.
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def _agree_gradients(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def _agree_plans(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(ours[1].long(), theirs[1].long()), "the cells' bounds differ"
    assert torch.equal(ours[0][: len(theirs[0])].long(), theirs[0]), "the samples' order differs"


def _plan_case(cell: Tensor, num_cells: int, cols: int, shape: str) -> Case:
    def ours() -> tuple[Tensor, Tensor]:
        plan = ops.bev_pool_plan(cell, num_cells, cols)
        return plan.sample, plan.cell_ptr

    def argsort() -> tuple[Tensor, Tensor]:
        lists = Lists(cell, num_cells)
        order = lists.cell.argsort(stable=True)
        bounds = torch.searchsorted(lists.cell[order], torch.arange(num_cells + 1, device=cell.device))
        _ = lists.pixel[order]
        return lists.sample[order], bounds

    num_bytes = cell.nbytes + 3 * 4 * cell.numel() + 4 * num_cells
    return Case("bev_pool_plan", shape, ours, {"torch argsort": argsort}, _agree_plans, num_bytes)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Plan, forward and backward at each shape, in float32.

    Args:
        device: where to run.
        quick: the smallest shape only.
    """
    for (rows, cols), bins, side in _SHAPES[:1] if quick else _SHAPES:
        shape = f"6x{rows}x{cols} D{bins} C{_CHANNELS} to {side}x{side}"
        cell = frustum_cells((rows, cols), bins, side).to(device)
        yield _plan_case(cell, side * side, side, shape)
        random = torch.Generator().manual_seed(0)
        depth = torch.randn(cell.shape, generator=random).softmax(1).to(device)
        feat_MHWC = torch.randn(cell.shape[0], rows, cols, _CHANNELS, generator=random).to(device)
        grad = torch.randn(side * side, _CHANNELS, generator=random).to(device)
        plan, lists = ops.bev_pool_plan(cell, side * side, side), Lists(cell, side * side)
        yield _forward_case(depth, feat_MHWC, plan, lists, shape, 1.5 if side == _SHAPES[-1][2] else None)
        yield _backward_case(depth, feat_MHWC, plan, lists, grad, shape)


def _forward_case(
    depth: Tensor, feat_MHWC: Tensor, plan: ops.BEVPoolPlan, lists: Lists, shape: str, of_bound: float | None
) -> Case:
    peers: dict[str, Callable[[], Tensor]] = {
        "torch index_add": lambda: lists.index_add(depth, feat_MHWC),
        "cumsum (lift-splat-shoot)": lambda: lists.cumsum(depth, feat_MHWC),
    }
    target = {"torch index_add": 60.0, "cumsum (lift-splat-shoot)": 180.0}
    if depth.is_cuda:
        peers["index lists, atomics"] = lambda: atomics.pool(depth, feat_MHWC, lists.short, lists.num_cells)
        target = {"index lists, atomics": 10.0}
    moved = depth.nbytes + feat_MHWC.nbytes + lists.num_cells * _CHANNELS * 4
    return Case(
        "bev_pool",
        shape,
        lambda: ops.bev_pool(depth, feat_MHWC.permute(0, 3, 1, 2), plan),
        peers,
        _agree_sums,
        moved + 8 * len(lists.sample) + 12 * lists.num_cells,
        target,
        limit_of_bound=of_bound if depth.is_cuda else None,
    )


def _backward_case(
    depth: Tensor, feat_MHWC: Tensor, plan: ops.BEVPoolPlan, lists: Lists, grad: Tensor, shape: str
) -> Case:
    leaves = depth.clone().requires_grad_(), feat_MHWC.clone().requires_grad_()
    out = lists.index_add(*leaves)

    ours = going_back(
        lambda: torch.ops.fusion3d.bev_pool_backward(grad, depth, feat_MHWC, plan.cell),
        lambda: ops.bev_pool(leaves[0], leaves[1].permute(0, 3, 1, 2), plan),
        leaves,
        grad,
    )
    peers: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "torch index_add": lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)
    }
    target = {"torch index_add": 20.0}
    if depth.is_cuda:
        peers["index lists, atomics"] = lambda: atomics.pool_backward(grad, depth, feat_MHWC, lists.short)
        target = {"index lists, atomics": 10.0}
    moved = 2 * (depth.nbytes + feat_MHWC.nbytes) + plan.cell.nbytes + grad.nbytes
    return Case("bev_pool backward", shape, ours, peers, _agree_gradients, moved, target)
