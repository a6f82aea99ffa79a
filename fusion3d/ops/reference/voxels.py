"""Twins of voxelization. Letters: P points, F numbers of a point, B samples, V rows of padded lists, C channels."""

from __future__ import annotations

import torch
from torch import Tensor


def _cells(points: Tensor, size: list[float], low: list[float], cells: list[int]) -> tuple[Tensor, Tensor]:
    """[P] int64 cell (z, y, x as one number) and [P] bool whether it is in the grid."""
    steps = (points[:, :3].float() - torch.tensor(low, device=points.device)) / torch.tensor(size, device=points.device)
    along = steps.floor()
    inside = ((along >= 0) & (along < torch.tensor(cells, device=points.device))).all(1)
    x, y, z = torch.where(inside[:, None], along, 0).long().unbind(1)
    return (z * cells[1] + y) * cells[0] + x, inside


def voxelize(
    points: Tensor,
    batch_ptr: Tensor | None,
    size: list[float],
    low: list[float],
    cells: list[int],
    max_points: int,
    max_voxels: int,
    by_key: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Coordinates, counts, voxel and rank of each point, number of voxels (see ``fusion3d.ops.Voxels``)."""
    device, rows = points.device, points.shape[0]
    if batch_ptr is None:
        batch_ptr = torch.tensor([0, rows], device=device)
    samples = batch_ptr.shape[0] - 1
    capacity = min(rows, samples * max_voxels)
    cell, inside = _cells(points, size, low, cells)
    per_sample = cells[0] * cells[1] * cells[2]
    sample = torch.searchsorted(batch_ptr, torch.arange(rows, device=device), right=True) - 1
    outside = samples * per_sample
    ordered, order = torch.where(inside, sample * per_sample + cell, outside).sort(stable=True)
    key, number, length = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    start = length.cumsum(0) - length
    rank = torch.arange(rows, device=device) - start[number]
    # Of each voxel, by key: its first point, and how many voxels of its sample were met before that.
    real = key < outside
    first = order[start]
    is_first = torch.zeros(rows + 1, dtype=torch.int64, device=device)
    is_first[first[real] + 1] = 1
    met = is_first.cumsum(0)
    voxel_sample = key // per_sample
    before = met[first] - met[batch_ptr[voxel_sample.clamp(max=samples - 1)]] if samples else first
    kept = real & (before < max_voxels)
    listed = kept.nonzero()[:, 0]
    if not by_key:
        listed = listed[first[listed].argsort()]
    row = torch.full_like(key, -1).index_copy(0, listed, torch.arange(len(listed), device=device))
    coords = torch.full((capacity, 4), -1, dtype=torch.int32, device=device)
    flat = key[listed] % per_sample
    x, y, z = flat % cells[0], flat // cells[0] % cells[1], flat // (cells[0] * cells[1])
    coords[: len(listed)] = torch.stack([voxel_sample[listed], z, y, x], dim=1).int()
    counts = torch.zeros(capacity, dtype=torch.int32, device=device)
    counts[: len(listed)] = length[listed].clamp(max=max_points).int()
    stays = (row[number] >= 0) & (rank < max_points)
    empty = torch.full((rows,), -1, dtype=torch.int32, device=device)
    voxel = empty.index_copy(0, order, torch.where(stays, row[number], -1).int())
    rank = empty.index_copy(0, order, torch.where(stays, rank, -1).int())
    return coords, counts, voxel, rank, torch.tensor([len(listed)], dtype=torch.int32, device=device)


def voxel_gather(values: Tensor, voxel: Tensor, rank: Tensor, voxels: int, max_points: int) -> Tensor:
    """[voxels, max_points, C] (see ``fusion3d.ops.Voxels.gather``)."""
    slots = voxels * max_points
    slot = torch.where(voxel < 0, slots, voxel.long() * max_points + rank)
    padded = values.new_zeros(slots + 1, values.shape[1]).index_copy(0, slot, values)  # the last for what is not kept
    return padded[:slots].view(voxels, max_points, values.shape[1])


def voxelize_mean(
    points: Tensor,
    features: Tensor,
    batch_ptr: Tensor | None,
    size: list[float],
    low: list[float],
    cells: list[int],
    max_points: int,
    max_voxels: int,
    by_key: bool,
) -> tuple[Tensor, ...]:
    """[V, C] means, then what ``voxelize`` returns (see ``fusion3d.ops.voxelize_mean``)."""
    found = voxelize(points.detach(), batch_ptr, size, low, cells, max_points, max_voxels, by_key)
    _, counts, voxel, *_ = found
    kept = (voxel >= 0).nonzero()[:, 0]
    exact = features[kept].to(torch.promote_types(features.dtype, torch.float32))
    total = exact.new_zeros(len(counts), features.shape[1]).index_add(0, voxel[kept], exact)
    return (total / counts.clamp(min=1)[:, None]).to(features.dtype), *found
