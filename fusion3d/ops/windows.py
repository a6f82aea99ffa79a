"""Windows of sparse voxels or of tokens in bird's-eye view, and attention inside them.

Letters: N rows, K rows that lie in windows, H heads, D channels of a head, W windows, B samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, in_autocast, shape_of
from fusion3d.ops.segments import segment_plan

__all__ = ["Windows", "flat_windows", "window_attention", "window_partition"]


@dataclass(frozen=True)
class Windows:
    """Which rows lie in which window. Rows of one window keep a fixed order, so results are reproducible to the bit."""

    order: Tensor  # [K] int32, rows window by window; those outside of the grid are left out
    cu_seqlens: Tensor  # [W + 1] int32, the rows of window w are order[cu_seqlens[w]:cu_seqlens[w + 1]]
    num_rows: int  # N

    def __len__(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @cached_property
    def inverse(self) -> Tensor:
        """[N] int32, place of each row in ``order`` or -1: ``packed[inverse]`` undoes ``values[order]``."""
        place = torch.arange(len(self.order), dtype=torch.int32, device=self.order.device)
        return self.order.new_full((self.num_rows,), -1).index_copy(0, self.order.long(), place)


def _cells_of(
    coords: Tensor, batch_size: int, grid: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, list[Tensor], list[int], list[Tensor]]:
    """Sample, window along each axis, number of windows along each axis, and place in the window along each axis.

    Sizes stay plain numbers: as tensors they would be copied to the device, and the host would wait for that.
    """
    check(coords, "coords", "NC", (torch.int32, torch.int64))
    axes = coords.shape[1] - 1
    if axes not in (2, 3):
        raise ValueError(f"coords has shape {shape_of(coords)}; expected [N, 3]: batch, y, x or [N, 4]: batch, z, y, x")
    for name, values, least in (("grid", grid, 1), ("window", window, 1), ("shift", shift, 0)):
        if len(values) != axes or any(int(v) != v or v < least for v in values):
            what = f"{axes} whole numbers of at least {least}, in the order of coords"
            raise ValueError(f"{name} is {list(values)}; expected {what}")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    grid, window, shift = ([int(v) for v in values] for values in (grid, window, shift))
    # A shift moves the windows' borders back, so the first window begins before the grid.
    shifts = [s % w for s, w in zip(shift, window, strict=True)]
    counts = [(g - 1 + s) // w + 1 for g, w, s in zip(grid, window, shifts, strict=True)]
    sample, *cells = coords.long().unbind(1)
    inside = (sample >= 0) & (sample < batch_size)
    at, place = [], []
    for cell, size, extent, moved in zip(cells, grid, window, shifts, strict=True):
        inside = inside & (cell >= 0) & (cell < size)
        at.append(torch.div(cell + moved, extent, rounding_mode="floor"))
        place.append(cell + moved - at[-1] * extent)
    return torch.where(inside, sample, -1), at, counts, place


def _flatten(first: Tensor, columns: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, int]:
    """One key of several columns, the last fastest; -1 where ``first`` is."""
    key = first
    for column, count in zip(columns, counts, strict=True):
        key = key * count + column
    return torch.where(first < 0, -1, key), prod(counts)


def _narrow(key: Tensor, num_keys: int) -> Tensor:
    """Fewer bits to sort where they hold all keys."""
    if num_keys >= 2**62:
        raise ValueError(f"grid and batch_size give {num_keys} cells; expected less than 2^62")
    return key.int() if num_keys < 2**31 else key


def window_partition(
    coords: Tensor, batch_size: int, grid: Sequence[int], window: Sequence[int], shift: Sequence[int] | None = None
) -> Windows:
    """Group the occupied cells of sparse grids by the window they lie in.

    Args:
        coords: [N, 3] batch, y, x or [N, 4] batch, z, y, x; int32 or int64 [cells]. Rows outside of the grid or of the
            batch (padding: batch -1) belong to no window.
        batch_size: samples B.
        grid: cells along (z,) y, x.
        window: cells of a window along (z,) y, x.
        shift: cells by which the windows are moved back along (z,) y, x, as in every other block of a Swin; or none.

    Returns:
        The windows that hold any row, ordered by sample, (z,) y, x; rows in each keep their order. Takes one host read
        on CUDA.

    Raises:
        ValueError: wrong shape, dtype or sizes.

    Source: windows without padding as in Wang et al., "DSVT" (2023); shifted windows from Liu et al., "Swin" (2021).
    """
    sample, at, counts, _ = _cells_of(coords, batch_size, grid, window, shift or [0] * len(grid))
    key, num_windows = _flatten(sample, at, counts)
    plan = segment_plan(_narrow(key, batch_size * num_windows), batch_size * num_windows)
    return Windows(plan.order, plan.ptr, coords.shape[0])


def flat_windows(
    coords: Tensor,
    batch_size: int,
    grid: Sequence[int],
    window: Sequence[int],
    size: int,
    shift: Sequence[int] | None = None,
    x_first: bool = True,
) -> Windows:
    """Cut the occupied cells of each sample, sorted by window and by place in it, into groups of equal size.

    Groups may reach over the border of a window; the last of each sample may be smaller. Every group costs the same.

    Args:
        coords: as for ``window_partition``.
        batch_size: samples B.
        grid: cells along (z,) y, x.
        window: cells of a window along (z,) y, x.
        size: rows of a group.
        shift: cells by which the windows are moved back; none if None.
        x_first: sort rows and windows along x before y (and z); the other way round if False. Blocks in turn use both.

    Returns:
        The groups, ordered by sample. Takes two host reads on CUDA.

    Raises:
        ValueError: wrong shape, dtype or sizes.

    Source: Liu et al., "FlatFormer: Flattened Window Attention" (2023).
    """
    if size < 1:
        raise ValueError(f"size is {size}; expected at least 1 row")
    sample, at, counts, place = _cells_of(coords, batch_size, grid, window, shift or [0] * len(grid))
    columns, sizes = [*at, *place], [*counts, *map(int, window)]
    if not x_first:
        axes = len(grid)
        turned = [*reversed(range(axes)), *reversed(range(axes, 2 * axes))]
        columns, sizes = [columns[i] for i in turned], [sizes[i] for i in turned]
    key, num_cells = _flatten(sample, columns, sizes)
    plan = segment_plan(_narrow(key, batch_size * num_cells), batch_size * num_cells)
    samples = torch.arange(batch_size + 1, device=coords.device)
    start = torch.searchsorted(sample[plan.order.long()], samples)
    groups = torch.div(start.diff() + size - 1, size, rounding_mode="floor")
    before = groups.cumsum(0) - groups
    owner = torch.repeat_interleave(samples[:-1], groups)
    cut = start[owner] + (torch.arange(len(owner), device=coords.device) - before[owner]) * size
    return Windows(plan.order, torch.cat([cut, start[-1:]]).int(), coords.shape[0])


def window_attention(
    q_NHD: Tensor,
    k_NHD: Tensor,
    v_NHD: Tensor,
    cu_seqlens: Tensor,
    order: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of every row to the rows of its own window: softmax(scale * q k^T) v, for each head.

    Windows of any length lie side by side, none is padded, and no matrix of scores is kept: memory beside input and
    output does not grow with the windows. Scores and sums are in float32 (float64 for float64); results are
    reproducible to the bit. Under autocast q, k and v are cast to its type. Slices of one projection
    (``qkv.unbind(1)``) are read where they lie. Positions are the caller's: add an embedding of the place in the window
    to q and k, as DSVT does.

    Args:
        q_NHD: [N, H, D] queries.
        k_NHD: [N, H, D] keys, same dtype and device.
        v_NHD: [N, H, D] values, same dtype and device.
        cu_seqlens: [W + 1] int32, where each window begins and ends, from 0 to K: of ``window_partition``. An empty
            window is fine.
        order: [K] int32, rows window by window, each at most once: of ``window_partition``. Rows are then read and
            written where they lie, which spares gathering q, k and v and scattering the result. If None, rows lie in
            the order of their windows and K is N.
        scale: of the scores; D ** -0.5 if None.

    Returns:
        [N, H, D] in the order of q; 0 for rows that no window lists. Differentiable with respect to q, k and v.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit one another, or on CUDA heads of more than 256 channels.
        RuntimeError: lists that do not ascend, or name rows that are not there or a row twice, on the CPU, where it is
            cheap to see. On CUDA what lies beyond the rows is left out: read as zeros where a window lists it, never
            written.

    Source: Vaswani et al., "Attention is all you need" (2017); computed as in Dao et al., "FlashAttention" (2022).
    """
    check(q_NHD, "q", "NHD", FLOATS)
    check(cu_seqlens, "cu_seqlens", "P", (torch.int32,))
    device = q_NHD.device
    for name, tensor in (("k", k_NHD), ("v", v_NHD)):
        check(tensor, name, "NHD", FLOATS)
        if tensor.shape != q_NHD.shape:
            raise ValueError(f"{name} has shape {shape_of(tensor)}; expected that of q, {shape_of(q_NHD)}")
    q_NHD, k_NHD, v_NHD = in_autocast(q_NHD, k_NHD, v_NHD)
    if not q_NHD.dtype == k_NHD.dtype == v_NHD.dtype:
        raise ValueError(f"q, k, v are {q_NHD.dtype}, {k_NHD.dtype}, {v_NHD.dtype}; expected one dtype: cast them")
    if cu_seqlens.shape[0] < 1:
        raise ValueError("cu_seqlens is empty; expected one entry more than there are windows")
    lists = [cu_seqlens]
    if order is not None:
        check(order, "order", "K", (torch.int32,))
        lists.append(order)
    if any(t.device != device for t in (k_NHD, v_NHD, *lists)):
        raise ValueError(f"q is on {device}, others on {[str(t.device) for t in (k_NHD, v_NHD, *lists)]}; expected one")
    if device.type == "cuda" and q_NHD.shape[2] > 256:
        raise ValueError(f"q has heads of {q_NHD.shape[2]} channels; expected at most 256 on CUDA")
    if scale is None:
        scale = float(max(q_NHD.shape[2], 1) ** -0.5)
    if library.has_kernel(device):
        q_NHD, k_NHD, v_NHD = (_rows_whole(t) for t in (q_NHD, k_NHD, v_NHD))
        order = None if order is None else order.contiguous()
        return torch.ops.fusion3d.window_attention(q_NHD, k_NHD, v_NHD, cu_seqlens.contiguous(), order, scale)[0]
    return reference.window_attention(q_NHD, k_NHD, v_NHD, cu_seqlens, order, scale)[0]


def _rows_whole(tensor: Tensor) -> Tensor:
    """Rows may be any stride apart, but what is in a row lies side by side."""
    _, heads, dim = tensor.shape
    whole = (dim <= 1 or tensor.stride(2) == 1) and (heads <= 1 or tensor.stride(1) == dim)
    return tensor if whole else tensor.contiguous()


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    def exact(tensor: Tensor) -> torch.dtype:
        return torch.promote_types(tensor.dtype, torch.float32)

    @torch.library.register_fake("fusion3d::window_attention")
    def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, order: Tensor | None, scale: float):
        return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=exact(q))

    @torch.library.register_fake("fusion3d::window_attention_backward")
    def _(
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_seqlens: Tensor,
        order: Tensor | None,
        scale: float,
    ):
        return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)

    def keep(ctx, inputs, output) -> None:
        q, k, v, cu_seqlens, order, ctx.scale = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, order)

    def backward(ctx, grad: Tensor, _: Tensor | None):
        q, k, v, out, lse, cu_seqlens, order = ctx.saved_tensors
        grads = torch.ops.fusion3d.window_attention_backward(
            grad.contiguous(), q, k, v, out, lse, cu_seqlens, order, ctx.scale
        )
        return (*grads, None, None, None)

    torch.library.register_autograd("fusion3d::window_attention", backward, setup_context=keep)
    library.not_twice_differentiable("window_attention_backward")


if not library.PROBLEM:
    _register()
