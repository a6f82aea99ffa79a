"""Points to voxels: which voxel each point is in, and the mean of what a voxel's points say.

Letters: P points, F numbers of a point, B samples, V rows of the padded lists of voxels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, shape_of

__all__ = ["Voxels", "voxelize", "voxelize_mean"]

_MOST_CELLS = 2**32 - 1  # in all; the kernels number them in 32 bits
_MOST_CELLS_ALONG = 2**24  # exact in float32
_FLOAT = torch.finfo(torch.float32)  # what the kernels compute cells in


@dataclass(frozen=True)
class Voxels:
    """The voxels of a batch of clouds, in lists that are padded to a length that the shapes of the input give."""

    coords: Tensor  # [V, 4] int32 sample, iz, iy, ix; -1 past the last voxel
    counts: Tensor  # [V] int32 points that are kept; 0 past the last voxel
    voxel: Tensor  # [P] int32 row of each point's voxel, -1 where the point is not kept
    rank: Tensor  # [P] int32 number of each point among those of its voxel, -1 where it is not kept
    num_voxels: Tensor  # [1] int32 how many rows hold a voxel, over the whole batch
    max_points: int

    def trim(self) -> Voxels:
        """Without padding; takes one host read on CUDA."""
        count = int(self.num_voxels)
        return Voxels(self.coords[:count], self.counts[:count], self.voxel, self.rank, self.num_voxels, self.max_points)

    def gather(self, values: Tensor) -> Tensor:
        """[P, C] values to [V, max_points, C], those of the points of each voxel in their order; 0 where there is none.

        Differentiable. Raises ValueError where there is not one row for each point, on the device of the voxels.
        """
        check(values, "values", "PC", FLOATS)
        if values.shape[0] != self.voxel.shape[0]:
            raise ValueError(f"values has shape {shape_of(values)}; expected one row for {self.voxel.shape[0]} points")
        if values.device != self.voxel.device:
            raise ValueError(f"values is on {values.device}, the voxels on {self.voxel.device}; expected one device")
        args = (self.voxel, self.rank, self.coords.shape[0], self.max_points)
        if library.has_kernel(values.device):
            return torch.ops.fusion3d.voxel_gather(values.contiguous(), *args)
        return reference.voxel_gather(values, *args)


@dataclass(frozen=True)
class _Grid:
    """What the kernels know of the voxels: each triple is x, y, z."""

    size: list[float]
    low: list[float]
    cells: list[int]


def voxelize(
    points: Tensor,
    voxel_size: Sequence[float],
    point_range: Sequence[float],
    max_points: int,
    max_voxels: int,
    batch_ptr: Tensor | None = None,
    order: Literal["first", "key"] = "first",
) -> Voxels:
    """Find each point's voxel, by the rule of the classic voxelizers: first come, first served.

    A point is in cell floor((x - low) / size), computed in float32 and by division; NaN and what is out of range are in
    none. Of each sample the first ``max_voxels`` voxels that its points meet are kept, and of each voxel the first
    ``max_points`` points.

    Args:
        points: [P, F] float, of which the first three are x, y, z [m]; the samples one after another.
        voxel_size: x, y, z [m].
        point_range: x, y, z of the lowest corner, then of the highest [m]; a whole number of voxels apart.
        max_points: that a voxel keeps.
        max_voxels: that a sample keeps.
        batch_ptr: [B + 1] int64, the points of sample b are [batch_ptr[b], batch_ptr[b + 1]); None: one sample.
        order: of the voxels of a sample, by their first point or by their cell (z, y, x); the same are kept.

    Returns:
        The voxels, sample by sample, in lists of min(P, B * max_voxels) rows. Nothing is read back on CUDA.

    Raises:
        ValueError: wrong shape, dtype or device; an empty grid, or one of 2^24 cells along an axis or 2^32 - 1 in all;
            or (on the CPU) a batch pointer that does not ascend from 0 to P.

    Source: Zhou and Tuzel, "VoxelNet" (2018); order and limits as in second.pytorch's points_to_voxel.
    """
    grid = _grid(voxel_size, point_range)
    _check(points, max_points, max_voxels, batch_ptr, order)
    batch_ptr = None if batch_ptr is None else batch_ptr.contiguous()
    limits = (max_points, max_voxels, order == "key")
    if library.has_kernel(points.device):
        args = (points.contiguous(), batch_ptr, grid.size, grid.low, grid.cells, *limits)
        return Voxels(*torch.ops.fusion3d.voxelize(*args), max_points=max_points)
    found = reference.voxelize(points, batch_ptr, grid.size, grid.low, grid.cells, *limits)
    coords, counts, voxel, rank, num_voxels = found
    return Voxels(coords, counts, voxel, rank, num_voxels, max_points)


def voxelize_mean(
    points: Tensor,
    voxel_size: Sequence[float],
    point_range: Sequence[float],
    max_points: int,
    max_voxels: int,
    batch_ptr: Tensor | None = None,
    order: Literal["first", "key"] = "first",
    features: Tensor | None = None,
) -> tuple[Tensor, Voxels]:
    """The mean over the points that each voxel keeps, without ever writing them out voxel by voxel.

    Args:
        points: as for ``voxelize``, as are the arguments that follow.
        voxel_size: x, y, z [m].
        point_range: lowest corner, then highest [m].
        max_points: that a voxel keeps.
        max_voxels: that a sample keeps.
        batch_ptr: [B + 1] int64, or None.
        order: of the voxels.
        features: [P, C] float what is averaged; by default the points themselves, all F numbers.

    Returns:
        [V, C] means of the dtype of the features, 0 past the last voxel; and the voxels. Sums are in float32 (float64
        for float64), in the order of the points. Differentiable with respect to the features.

    Raises:
        ValueError: as ``voxelize``, or features that do not fit the points.
    """
    grid = _grid(voxel_size, point_range)
    _check(points, max_points, max_voxels, batch_ptr, order)
    features = points if features is None else features
    check(features, "features", "PC", FLOATS)
    if features.shape[0] != points.shape[0] or features.device != points.device:
        raise ValueError(
            f"features has shape {shape_of(features)} on {features.device}; "
            f"expected one row for each of {points.shape[0]} points on {points.device}"
        )
    batch_ptr = None if batch_ptr is None else batch_ptr.contiguous()
    limits = (max_points, max_voxels, order == "key")
    if library.has_kernel(points.device):
        args = (
            points.detach().contiguous(),
            features.contiguous(),
            batch_ptr,
            grid.size,
            grid.low,
            grid.cells,
            *limits,
        )
        means, *found = torch.ops.fusion3d.voxelize_mean(*args)
    else:
        args = (points, features, batch_ptr, grid.size, grid.low, grid.cells, *limits)
        means, *found = reference.voxelize_mean(*args)
    coords, counts, voxel, rank, num_voxels = found
    return means, Voxels(coords, counts, voxel, rank, num_voxels, max_points)


def _grid(voxel_size: Sequence[float], point_range: Sequence[float]) -> _Grid:
    if len(voxel_size) != 3 or len(point_range) != 6:
        raise ValueError(
            f"voxel_size has {len(voxel_size)} numbers and point_range {len(point_range)}; expected x, y, z "
            "and the lowest x, y, z, then the highest"
        )
    size, low, high = ([float(v) for v in t] for t in (voxel_size, point_range[:3], point_range[3:]))
    if not all(s >= _FLOAT.tiny and _FLOAT.min <= a < b <= _FLOAT.max for s, a, b in zip(size, low, high, strict=True)):
        raise ValueError(
            f"voxel_size {size}, point_range {low} to {high}: expected sizes above 0 and low < high, within float32"
        )
    cells = [round((b - a) / s) for s, a, b in zip(size, low, high, strict=True)]
    if not all(1 <= n < _MOST_CELLS_ALONG for n in cells) or cells[0] * cells[1] * cells[2] >= _MOST_CELLS:
        raise ValueError(
            f"point_range: {cells} voxels along x, y, z; expected 1 to {_MOST_CELLS_ALONG - 1} each "
            f"and less than {_MOST_CELLS} in all"
        )
    return _Grid(size, low, cells)


def _check(points: Tensor, max_points: int, max_voxels: int, batch_ptr: Tensor | None, order: str) -> None:
    check(points, "points", "PF", FLOATS)
    if points.shape[1] < 3:
        raise ValueError(f"points has shape {shape_of(points)}; expected at least x, y, z of each")
    if max_points < 1 or max_voxels < 1:
        raise ValueError(f"max_points {max_points}, max_voxels {max_voxels}: expected at least 1 of each")
    if order not in ("first", "key"):
        raise ValueError(f"order: found {order!r}; expected 'first' or 'key'")
    if batch_ptr is None:
        return
    check(batch_ptr, "batch_ptr", "B", (torch.int64,))
    if batch_ptr.shape[0] < 1 or batch_ptr.device != points.device:
        raise ValueError(
            f"batch_ptr has shape {shape_of(batch_ptr)} on {batch_ptr.device}; expected [B + 1] on {points.device}"
        )
    if batch_ptr.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = batch_ptr.tolist()
        if bounds[0] != 0 or bounds[-1] != points.shape[0] or sorted(bounds) != bounds:
            raise ValueError(f"batch_ptr: found {bounds}; expected it to ascend from 0 to {points.shape[0]} points")


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    def lists(points: Tensor, batch_ptr: Tensor | None, max_voxels: int) -> tuple[Tensor, ...]:
        rows = points.shape[0]
        samples = 1 if batch_ptr is None else batch_ptr.shape[0] - 1
        capacity: int = torch.sym_min(rows, samples * max_voxels)  # type: ignore[assignment]
        shapes: list[tuple[int, ...]] = [(capacity, 4), (capacity,), (rows,), (rows,), (1,)]
        return tuple(points.new_empty(shape, dtype=torch.int32) for shape in shapes)

    @torch.library.register_fake("fusion3d::voxelize")
    def _(points, batch_ptr, size, low, cells, max_points: int, max_voxels: int, by_key: bool):
        return lists(points, batch_ptr, max_voxels)

    @torch.library.register_fake("fusion3d::voxelize_mean")
    def _(points, features, batch_ptr, size, low, cells, max_points: int, max_voxels: int, by_key: bool):
        found = lists(points, batch_ptr, max_voxels)
        return features.new_empty(found[0].shape[0], features.shape[1]), *found

    def keep(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        _, _, counts, voxel, *_ = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(counts, voxel)

    def backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        counts, voxel = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        share = (grad.to(exact) / counts.clamp(min=1)[:, None]).to(grad.dtype)
        share = torch.cat([share, share.new_zeros(1, share.shape[1])])  # the last for points that are not kept
        return None, share[torch.where(voxel < 0, share.shape[0] - 1, voxel)], *(None,) * 7

    torch.library.register_autograd("fusion3d::voxelize_mean", backward, setup_context=keep)

    @torch.library.register_fake("fusion3d::voxel_gather")
    def _(values: Tensor, voxel: Tensor, rank: Tensor, voxels: int, max_points: int) -> Tensor:
        return values.new_empty(voxels, max_points, values.shape[1])

    def keep_slots(ctx, inputs: tuple, output: Tensor) -> None:
        _, voxel, rank, _, ctx.max_points = inputs
        ctx.save_for_backward(voxel, rank)

    def scatter(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        voxel, rank = ctx.saved_tensors
        kept = voxel >= 0
        slot = torch.where(kept, voxel.long() * ctx.max_points + rank, 0)
        if grad.shape[0] == 0:  # nothing to index
            return grad.new_zeros(voxel.shape[0], grad.shape[2]), None, None, None, None
        return torch.where(kept[:, None], grad.flatten(0, 1)[slot], 0), None, None, None, None

    torch.library.register_autograd("fusion3d::voxel_gather", scatter, setup_context=keep_slots)


if not library.PROBLEM:
    _register()
