"""Voxelization and segment reduction against the voxelizers and the torch idioms that others use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.engine.benchmark_ops.case import Case, going_back
from fusion3d.engine.benchmark_ops.inputs import lidar_sweeps

_RANGE = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
_SIZES = {"0.075 m": ((0.075, 0.075, 0.2), 10), "pillars 0.2 m": ((0.2, 0.2, 8.0), 20)}  # voxel size, most points
_MOST_VOXELS = 160_000


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Every case for a device; ``quick``: one small shape of each operation."""
    cloud = lidar_sweeps()[: 20_000 if quick else None]
    points = torch.from_numpy(cloud).to(device)
    for name, (size, most) in _SIZES.items():
        yield from _voxelize(points, name, size, most)
        yield _voxelize_all(points, name, size, most)
        if quick:
            break
    for reduce in ("mean", "max"):
        yield from _segments(points, 64, reduce)


def _classic(size: tuple[float, ...], most: int) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """The voxelizer that numba users have: one thread, a dense map from cell to voxel made anew for each cloud."""
    import numba

    low, step = np.array(_RANGE[:3], np.float32), np.array(size, np.float32)
    cells = tuple(round((_RANGE[i + 3] - _RANGE[i]) / size[i]) for i in range(3))

    @numba.njit
    def fill(points, low, step, voxel_of_cell, voxels, coords, counts):
        found = 0
        cell = np.zeros(3, np.int32)
        for i in range(points.shape[0]):
            outside = False
            for j in range(3):
                c = np.floor((points[i, j] - low[j]) / step[j])
                if c < 0 or c >= voxel_of_cell.shape[2 - j]:
                    outside = True
                    break
                cell[2 - j] = c
            if outside:
                continue
            voxel = voxel_of_cell[cell[0], cell[1], cell[2]]
            if voxel == -1:
                if found == coords.shape[0]:
                    continue
                voxel = found
                found += 1
                voxel_of_cell[cell[0], cell[1], cell[2]] = voxel
                coords[voxel] = cell
            count = counts[voxel]
            if count < voxels.shape[1]:
                voxels[voxel, count] = points[i]
                counts[voxel] += 1
        return found

    def run(points: np.ndarray) -> tuple[np.ndarray, ...]:
        voxels = np.zeros((_MOST_VOXELS, most, points.shape[1]), np.float32)
        coords, counts = np.zeros((_MOST_VOXELS, 3), np.int32), np.zeros(_MOST_VOXELS, np.int32)
        found = fill(points, low, step, -np.ones(cells[::-1], np.int32), voxels, coords, counts)
        return voxels[:found], coords[:found], counts[:found]

    return run


def _spconv(size: tuple[float, ...], most: int, num_features: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    made: list[Any] = []

    def run(points: Tensor) -> tuple[Tensor, ...]:
        if not made:  # when it is first called: where it is not installed, the others are timed all the same
            theirs = import_module("spconv.pytorch.utils")  # no statement: types are checked without it too
            made.append(theirs.PointToVoxel(list(size), list(_RANGE), num_features, _MOST_VOXELS, most))
        return made[0](points)

    return run


def _unique(points: Tensor, size: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Means over all points of a voxel, by torch.unique and index_add: [M, F] and [M, 3] by key."""
    cells = torch.tensor([round((_RANGE[i + 3] - _RANGE[i]) / size[i]) for i in range(3)], device=points.device)
    steps = (points[:, :3] - points.new_tensor(_RANGE[:3])) / points.new_tensor(size)
    cell = steps.floor().long()
    inside = ((cell >= 0) & (cell < cells)).all(1)
    points, cell = points[inside], cell[inside]
    flat = (cell[:, 2] * cells[1] + cell[:, 1]) * cells[0] + cell[:, 0]
    key, number, count = torch.unique(flat, return_inverse=True, return_counts=True)
    total = points.new_zeros(len(key), points.shape[1]).index_add(0, number, points)
    coords = torch.stack([key // (cells[0] * cells[1]), key // cells[0] % cells[1], key % cells[0]], 1)
    return total / count[:, None], coords


def _same(ours: tuple[Tensor, Tensor], theirs: tuple[Any, Any]) -> None:
    """Rows and coordinates z, y, x, in whatever order of voxels."""
    listed = []
    for rows, coords in (ours, theirs):
        rows, coords = torch.as_tensor(rows).cpu(), torch.as_tensor(coords).cpu().long()
        order = torch.argsort((coords[:, 0] * 10_000 + coords[:, 1]) * 10_000 + coords[:, 2])
        listed.append((rows[order], coords[order]))
    assert torch.equal(listed[0][1], listed[1][1])
    torch.testing.assert_close(listed[0][0], listed[1][0], rtol=1e-4, atol=1e-3)


def _trimmed(rows: Tensor, voxels: ops.Voxels) -> tuple[Tensor, Tensor]:
    voxels = voxels.trim()
    return rows[: len(voxels.coords)], voxels.coords[:, 1:]


def _voxelize(points: Tensor, name: str, size: tuple[float, ...], most: int) -> Iterator[Case]:
    """The classic form, in which each voxel's points are written out; and the mean of them, without that."""
    classic: dict[str, Callable[[], Any]] = {}
    peers: dict[str, Callable[[], Any]] = {}
    if points.device.type == "cpu":
        numba, spconv, array = _classic(size, most), _spconv(size, most, points.shape[1]), points.numpy()

        def numba_mean() -> tuple[np.ndarray, np.ndarray]:
            voxels, coords, counts = numba(array)
            return voxels.sum(1) / counts[:, None].astype(np.float32), coords

        def spconv_mean() -> tuple[Tensor, Tensor]:
            voxels, coords, counts = spconv(points)
            return voxels.sum(1) / counts[:, None], coords

        classic = {"numba": lambda: numba(array)[:2], "spconv": lambda: spconv(points)[:2]}
        peers = {"numba": numba_mean, "spconv": spconv_mean}

    def points_of_voxels() -> tuple[Tensor, ops.Voxels]:
        voxels = ops.voxelize(points, size, _RANGE, most, _MOST_VOXELS).trim()
        return voxels.gather(points), voxels

    found = int(ops.voxelize(points, size, _RANGE, most, _MOST_VOXELS).num_voxels)
    shape = f"{len(points)} points, {name}, {found} voxels"
    num_bytes = points.numel() * 4 + 8 * len(points) + found * 5 * 4
    target = {"numba": 15.0, "spconv": 4.0} if points.device.type == "cpu" else {}
    if points.device.type == "cuda":  # the others wait for the number of voxels, or do more
        yield Case(
            op="voxelize",
            shape=shape,
            ours=lambda: ops.voxelize(points, size, _RANGE, most, _MOST_VOXELS),
            peers={},
            agree=_same,
            num_bytes=num_bytes,
            limit=70e-6 if len(points) == 270_000 else None,
        )
    yield Case(
        op="voxelize and gather",
        shape=shape,
        ours=points_of_voxels,
        peers=classic,
        agree=lambda ours, theirs: _same(_trimmed(*ours), theirs),
        num_bytes=num_bytes + found * most * points.shape[1] * 4,
        target=target,
    )
    yield Case(
        op="voxelize_mean",
        shape=shape,
        ours=lambda: ops.voxelize_mean(points, size, _RANGE, most, _MOST_VOXELS),
        peers=peers,
        agree=lambda ours, theirs: _same(_trimmed(*ours), theirs),
        num_bytes=num_bytes + found * points.shape[1] * 4,
        target=target,
    )


def _voxelize_all(points: Tensor, name: str, size: tuple[float, ...], most: int) -> Case:
    """The mean of all points of each voxel, without limits: what torch's idiom computes."""
    found = int(ops.voxelize(points, size, _RANGE, len(points), _MOST_VOXELS).num_voxels)
    return Case(
        op="voxelize_mean, all points",
        shape=f"{len(points)} points, {name}, {found} voxels",
        ours=lambda: ops.voxelize_mean(points, size, _RANGE, len(points), len(points)),
        peers={"unique + index_add": lambda: _unique(points, size)},
        agree=lambda ours, theirs: _same(_trimmed(*ours), theirs),
        num_bytes=points.numel() * 4 + 8 * len(points) + found * (points.shape[1] + 5) * 4,
    )


def _segments(points: Tensor, channels: int, reduce: str) -> Iterator[Case]:
    """Grouping by pillar and reduction of rows of features, and its backward."""
    cell = torch.floor((points[:, :2] + 54) / 0.4).long()
    inside = ((cell >= 0) & (cell < 270)).all(1)
    keys = torch.where(inside, cell[:, 1] * 270 + cell[:, 0], -1)[inside]
    random = torch.Generator().manual_seed(0)
    values = torch.randn(len(keys), channels, generator=random).to(points.device)
    shape = f"{len(keys)} rows, {channels} channels"

    def ours(rows: Tensor) -> Tensor:
        return ops.segment_reduce(rows, ops.segment_plan(keys, 270 * 270), "mean" if reduce == "mean" else "max")

    def theirs(rows: Tensor) -> Tensor:
        key, number, count = torch.unique(keys, return_inverse=True, return_counts=True)
        out = rows.new_zeros(len(key), channels)
        if reduce == "mean":
            return out.index_add(0, number, rows) / count[:, None]
        return out.scatter_reduce(0, number[:, None].expand_as(rows), rows, "amax", include_self=False)

    def agree(a: Tensor, b: Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    peer = "unique + " + ("index_add" if reduce == "mean" else "scatter_reduce")
    num_bytes = values.numel() * 4
    yield Case(f"segment_{reduce}", shape, lambda: ours(values), {peer: lambda: theirs(values)}, agree, num_bytes)
    leaf = values.clone().requires_grad_()
    plan, out = ops.segment_plan(keys, 270 * 270), theirs(leaf)
    grad = torch.randn(out.shape, generator=random).to(points.device)

    @cache
    def largest() -> Tensor:
        return torch.ops.fusion3d.segment_reduce(values, plan.order, plan.ptr, plan.segment, reduce)[1]

    def direct() -> tuple[Tensor]:
        return (torch.ops.fusion3d.segment_reduce_backward(grad, plan.ptr, plan.segment, largest(), reduce),)

    def agree_grads(mine: tuple[Tensor], others: tuple[Tensor]) -> None:
        agree(mine[0], others[0])

    theirs_back = {peer: lambda: torch.autograd.grad(out, leaf, grad, retain_graph=True)}
    ours_back = going_back(direct, lambda: ours(leaf), [leaf], grad)
    yield Case(f"segment_{reduce} backward", shape, ours_back, theirs_back, agree_grads, num_bytes)
