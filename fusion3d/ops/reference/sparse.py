"""Twins of sparse convolution. Letters: N input rows, M output rows, K taps, I O input and output channels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def _cells(coords_N4: Tensor, shape: Sequence[int]) -> Tensor:
    """[N] int64, flat cell of each row, counted batch, z, y, x."""
    b, z, y, x = coords_N4.long().unbind(1)
    return ((b * shape[0] + z) * shape[1] + y) * shape[2] + x


def _check_coords(coords_N4: Tensor, batch_size: int, shape: Sequence[int]) -> None:
    """Every row inside and no voxel twice; on the CPU alone, where it takes no wait."""
    if coords_N4.device.type != "cpu" or not len(coords_N4):
        return
    limits = torch.tensor([batch_size, *shape])
    outside = ((coords_N4 < 0) | (coords_N4 >= limits)).any(1).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"coords: row {row} is {tuple(coords_N4[row].tolist())}; expected each in "
            + ", ".join(f"[0, {limit})" for limit in limits.tolist())
        )
    if len(torch.unique(_cells(coords_N4, shape))) < len(coords_N4):
        raise ValueError("coords: two rows have the same batch, z, y and x; expected each voxel once")


def sparse_submanifold(
    coords_N4: Tensor, batch_size: int, shape: Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """[K, N] int32 neighbour table of a submanifold convolution (see ``fusion3d.ops.sparse_rulebook``)."""
    _check_coords(coords_N4, batch_size, shape)
    device = coords_N4.device
    limits = torch.tensor(shape, device=device)
    inside_N = ((coords_N4 >= 0).all(1)) & (coords_N4[:, 0] < batch_size) & (coords_N4[:, 1:] < limits).all(1)
    cells_N = torch.where(inside_N, _cells(coords_N4, shape), -1)
    ordered_N, order_N = cells_N.sort(stable=True)
    table = []
    for tap in itertools.product(*map(range, kernel)):
        step = torch.tensor([(k - n // 2) * d for k, n, d in zip(tap, kernel, dilation, strict=True)], device=device)
        at_N3 = coords_N4[:, 1:] + step
        valid_N = inside_N & (at_N3 >= 0).all(1) & (at_N3 < limits).all(1)
        wanted_N = _cells(torch.cat([coords_N4[:, :1], at_N3], 1), shape)
        place_N = torch.searchsorted(ordered_N, wanted_N).clamp(max=max(len(cells_N) - 1, 0))
        found_N = valid_N & (ordered_N[place_N] == wanted_N)
        table.append(torch.where(found_N, order_N[place_N], -1).int())
    return torch.stack(table)


def sparse_strided(
    coords_N4: Tensor,
    batch_size: int,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Output coordinates [M, 4], table [K, M] and transposed table [K, N] of a strided convolution, int32."""
    _check_coords(coords_N4, batch_size, shape)
    device = coords_N4.device
    sizes = zip(shape, kernel, stride, padding, dilation, strict=True)
    out_shape = [max((n + 2 * p - d * (k - 1) - 1) // s + 1, 0) for n, k, s, p, d in sizes]
    limits, steps = torch.tensor(out_shape, device=device), torch.tensor(stride, device=device)
    inside_N = ((coords_N4 >= 0).all(1)) & (coords_N4[:, 0] < batch_size)
    inside_N &= (coords_N4[:, 1:] < torch.tensor(shape, device=device)).all(1)
    rows = []
    for tap in itertools.product(*map(range, kernel)):
        shift = torch.tensor([p - k * d for k, p, d in zip(tap, padding, dilation, strict=True)], device=device)
        at_N3 = coords_N4[:, 1:] + shift
        out_N3 = at_N3.div(steps, rounding_mode="floor")
        valid_N = inside_N & (at_N3 >= 0).all(1) & (at_N3 % steps == 0).all(1) & (out_N3 < limits).all(1)
        rows.append(torch.where(valid_N, _cells(torch.cat([coords_N4[:, :1], out_N3], 1), out_shape), -1))
    cells_KN = torch.stack(rows)
    cells_M, inverse = torch.unique(cells_KN, return_inverse=True)
    hidden = int(len(cells_M) > 0 and cells_M[0] < 0)  # the cell -1 of those that read nothing
    cells_M = cells_M[hidden:]
    transposed_KN = (inverse - hidden).int()
    table_KM = transposed_KN.new_full((len(rows), len(cells_M)), -1)
    tap_P, row_P = (transposed_KN >= 0).nonzero(as_tuple=True)
    table_KM[tap_P, transposed_KN[tap_P, row_P].long()] = row_P.int()
    digits, rest = [], cells_M
    for size in reversed(out_shape):
        digits.append(rest % max(size, 1))
        rest = rest // max(size, 1)
    return torch.stack([rest, *reversed(digits)], 1).int(), table_KM, transposed_KN


def sparse_conv(features_NI: Tensor, weight_OKI: Tensor, table_KM: Tensor) -> Tensor:
    """[M, O] sum over the taps of the weighted neighbours (see ``fusion3d.ops.sparse_conv``).

    Args:
        features_NI: [N, I] float.
        weight_OKI: [O, K, I], same dtype.
        table_KM: [K, M] integer, the row of ``features`` that an output reads through a tap, or -1.

    Returns:
        [M, O], accumulated in float32 (float64 for float64 input).
    """
    exact = torch.promote_types(features_NI.dtype, torch.float32)
    features_NI, weight_OKI, dtype = features_NI.to(exact), weight_OKI.to(exact), features_NI.dtype
    out_MO = features_NI.new_zeros(table_KM.shape[1], weight_OKI.shape[0])
    for k, table_M in enumerate(table_KM):
        rows = (table_M >= 0).nonzero()[:, 0]
        out_MO = out_MO.index_add(0, rows, features_NI[table_M[rows].long()] @ weight_OKI[:, k].T)
    return out_MO.to(dtype)
