"""Voxelization: the rule by plain loops, kernels against twins, and what torch asks of an op."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from harness import DEVICES, assert_same_bits, assert_twin_warns_once, compiled, exported, opcheck, reads_values
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import reference

SIZE, RANGE = (0.5, 0.4, 1.0), (-2.0, -2.0, -1.0, 2.0, 2.0, 3.0)  # 8 x 10 x 4 voxels
LISTS = ["coords", "counts", "voxel", "rank", "num_voxels"]


def cloud(count, seed=0, spread=2.5, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 5, generator=random, dtype=torch.float64) * 2 * spread - spread
    return points.to(dtype)


def by_loops(points, bounds, max_points, max_voxels):
    """The rule of the classic voxelizers, point by point; None where a point is not kept."""
    low, size = np.float32(RANGE[:3]), np.float32(SIZE)
    cells = [8, 10, 4]
    coords, counts, where = [], [], []
    for sample, (begin, end) in enumerate(itertools.pairwise(bounds)):
        seen = {}
        for xyz in points[begin:end, :3].astype(np.float32):
            with np.errstate(all="ignore"):
                cell = np.floor((xyz - low) / size)
            if not all(0 <= c < n for c, n in zip(cell, cells, strict=True)):
                where.append(None)
                continue
            key = (sample, *(int(c) for c in cell[::-1]))
            if key not in seen:
                if len(seen) == max_voxels:
                    where.append(None)
                    continue
                seen[key] = len(coords)
                coords.append(key)
                counts.append(0)
            number = seen[key]
            where.append((number, counts[number]) if counts[number] < max_points else None)
            counts[number] = min(counts[number] + 1, max_points)
    return coords, counts, where


def lists_of(voxels):
    return [getattr(voxels, name) for name in LISTS]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=0, max_size=4),
    st.integers(1, 4),
    st.sampled_from([1, 5, 1000]),
    st.integers(0, 99),
    st.sampled_from([1.0, 2.5, 50.0]),
)
def test_first_come_first_served(sizes, max_points, max_voxels, seed, spread):
    bounds = np.cumsum([0, *sizes]).tolist()
    points = cloud(bounds[-1], seed, spread)
    points[::7] = (points[::7] * 2).round() / 2  # on the borders of voxels
    points[3::11, seed % 3] = float("nan") if seed % 2 else float("inf")
    coords, counts, where = by_loops(points.numpy(), bounds, max_points, max_voxels)
    voxels = ops.voxelize(points, SIZE, RANGE, max_points, max_voxels, torch.tensor(bounds))
    count = int(voxels.num_voxels)
    assert voxels.coords.shape == (min(len(points), len(sizes) * max_voxels), 4)
    assert [tuple(c) for c in voxels.coords[:count].tolist()] == coords
    assert voxels.counts[:count].tolist() == counts
    assert (voxels.coords[count:] == -1).all() and not voxels.counts[count:].any()
    found = list(zip(voxels.voxel.tolist(), voxels.rank.tolist(), strict=True))
    assert found == [w or (-1, -1) for w in where]
    for order in ("first", "key"):
        args = (max_points, max_voxels, order == "key")
        ours = lists_of(ops.voxelize(points, SIZE, RANGE, max_points, max_voxels, torch.tensor(bounds), order))
        twin = reference.voxelize(points, torch.tensor(bounds), list(SIZE), list(RANGE[:3]), [8, 10, 4], *args)
        assert all(torch.equal(a, b) for a, b in zip(ours, twin, strict=True)), order


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["first", "key"])
@pytest.mark.parametrize(("samples", "max_voxels"), [(1, 100_000), (1, 9_000), (3, 4_000), (50, 300)])
def test_many_points_equal_twin(device, order, samples, max_voxels):
    points = cloud(60_000, spread=11).to(device)
    ptr = (torch.arange(samples + 1) * len(points) // samples).to(device)
    size, limits = (0.2, 0.2, 0.5), (-10.0, -10.0, -10.0, 10.0, 10.0, 10.0)
    means, voxels = ops.voxelize_mean(points, size, limits, 2, max_voxels, ptr, order)
    twin = reference.voxelize_mean(
        points, points, ptr, list(size), list(limits[:3]), [100, 100, 40], 2, max_voxels, order == "key"
    )
    torch.testing.assert_close(means, twin[0], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(lists_of(voxels), twin[1:], strict=True))
    assert (int(voxels.num_voxels) == samples * max_voxels) == (max_voxels != 100_000)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cells", [(1, 1, 1), (2, 1, 1), (1, 3, 85), (1, 1, 257), (2**23, 3, 1), (2**24 - 1, 1, 255)])
def test_grids_of_any_size_equal_twin(device, cells):
    points = (cloud(20_000, spread=1.01).double() * 50).round().float().to(device) / 50  # many in each voxel
    size = [2 / n for n in cells]
    voxels = ops.voxelize(points, size, (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0), 3, 9000)
    twin = reference.voxelize(points, None, size, [-1.0] * 3, list(cells), 3, 9000, False)
    assert all(torch.equal(a, b) for a, b in zip(lists_of(voxels), twin, strict=True))


def test_order_by_key_ascends_and_keeps_the_same():
    points = cloud(500)
    first, key = (ops.voxelize(points, SIZE, RANGE, 3, 40, order=order).trim() for order in ("first", "key"))
    assert key.coords.tolist() == sorted(first.coords.tolist()) and len(key.coords) == 40


def test_a_point_on_a_border_is_where_division_puts_it():
    # In float32, (x - low) / size and (x - low) * (1 / size) fall in different voxels for many x on borders.
    size = np.float32(0.075)
    x = (np.arange(0, 1440, dtype=np.float32) * size - np.float32(54)).astype(np.float32)
    points = np.zeros((len(x), 3), dtype=np.float32)
    points[:, 0] = x
    divided = np.floor((x - np.float32(-54)) / size).astype(int)
    multiplied = np.floor((x - np.float32(-54)) * (np.float32(1) / size)).astype(int)
    assert (divided != multiplied).any()
    voxels = ops.voxelize(torch.from_numpy(points), (0.075, 0.075, 0.2), (-54, -54, -5, 54, 54, 3), 10, 2000)
    assert voxels.coords[voxels.voxel.long(), 3].tolist() == divided.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("channels", [0, 1, 4, 5, 11])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_means_and_their_gradient_equal_twin(device, channels, dtype, tolerance):
    points = cloud(700).to(device)
    random = torch.Generator().manual_seed(1)
    features = torch.randn(700, channels, generator=random).to(device, dtype).requires_grad_()
    exact = features.detach().double().requires_grad_()
    ptr = torch.tensor([0, 300, 300, 700], device=device)
    means, voxels = ops.voxelize_mean(points, SIZE, RANGE, 3, 90, ptr, features=features)
    want, *lists = reference.voxelize_mean(points, exact, ptr, list(SIZE), list(RANGE[:3]), [8, 10, 4], 3, 90, False)
    grad = torch.randn(want.shape, generator=random).to(device, dtype)
    means.backward(grad)
    want.backward(grad.double())
    assert means.dtype == features.grad.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(lists_of(voxels), lists, strict=True))
    torch.testing.assert_close(means.double(), want, rtol=tolerance, atol=tolerance * 2)
    torch.testing.assert_close(features.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_coordinates_are_float32_whatever_the_points_are(dtype):
    points = cloud(400, dtype=dtype)
    ours = ops.voxelize(points, SIZE, RANGE, 3, 90)
    assert all(
        torch.equal(a, b)
        for a, b in zip(lists_of(ours), lists_of(ops.voxelize(points.float(), SIZE, RANGE, 3, 90)), strict=True)
    )


def test_gather_is_the_classic_form():
    points = cloud(300).requires_grad_()
    means, voxels = ops.voxelize_mean(points, SIZE, RANGE, 3, 90)
    padded = voxels.gather(points)
    assert padded.shape == (90, 3, 5)
    for i in range(300):
        if voxels.voxel[i] >= 0:
            assert torch.equal(padded[voxels.voxel[i], voxels.rank[i]], points[i])
    torch.testing.assert_close(padded.sum(1) / voxels.counts.clamp(min=1)[:, None], means)
    assert padded.count_nonzero() == (voxels.voxel >= 0).sum() * 5
    padded.sum().backward()
    assert torch.equal(points.grad, (voxels.voxel >= 0).float()[:, None].expand(300, 5))
    with pytest.raises(ValueError, match="one row for 300 points"):
        voxels.gather(points[:5])
    with pytest.raises(ValueError, match="values is on meta, the voxels on cpu"):
        voxels.gather(points.to("meta"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize(("max_voxels", "spread"), [(200_000, 11), (900, 11), (900, 99999)])
def test_gather_equals_twin(device, dtype, max_voxels, spread):
    points = cloud(40_000, spread=spread).to(device)
    voxels = ops.voxelize(points, (0.2, 0.2, 0.5), (-10.0, -10.0, -10.0, 10.0, 10.0, 10.0), 3, max_voxels)
    for listed in (voxels, voxels.trim()):
        values = torch.randn(len(points), 7).to(device, dtype).requires_grad_()
        exact = values.detach().clone().requires_grad_()
        found = listed.gather(values)
        want = reference.voxel_gather(exact, listed.voxel, listed.rank, len(listed.coords), 3)
        assert torch.equal(found, want) and found.dtype == dtype
        grad = torch.randn_like(want)
        found.backward(grad)
        want.backward(grad)
        assert torch.equal(values.grad, exact.grad)


@compiled
def test_gather_of_no_voxels_or_channels():
    voxels = ops.voxelize(torch.full((5, 3), 99.0), SIZE, RANGE, 3, 90).trim()
    values = torch.ones(5, 2, requires_grad=True)
    found = voxels.gather(values)
    assert found.shape == (0, 3, 2)
    found.sum().backward()
    assert not values.grad.any()
    assert voxels.gather(torch.ones(5, 0)).shape == (0, 3, 0)


def test_gradcheck():
    features = torch.randn(20, 3, dtype=torch.float64, requires_grad=True)
    points = cloud(20, spread=0.8)
    assert torch.autograd.gradcheck(lambda f: ops.voxelize_mean(points, SIZE, RANGE, 2, 9, features=f)[0], (features,))


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    points, ptr = cloud(50).to(device), torch.tensor([0, 20, 50], device=device)
    tail = (list(SIZE), list(RANGE[:3]), [8, 10, 4], 2, 9, False)
    features = torch.randn(50, 3, device=device, requires_grad=True)
    for bounds in (None, ptr):
        opcheck(torch.ops.fusion3d.voxelize, points, bounds, *tail)
        opcheck(torch.ops.fusion3d.voxelize_mean, points, features, bounds, *tail)
    voxels = ops.voxelize(points, SIZE, RANGE, 2, 9, ptr)
    opcheck(torch.ops.fusion3d.voxel_gather, features, voxels.voxel, voxels.rank, 18, 2)


@compiled
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    def means(points):
        mean, voxels = ops.voxelize_mean(points, SIZE, RANGE, 3, 90)
        return mean, voxels.gather(points)

    traced = torch.compile(means, backend=backend, fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(traced(cloud(200)), means(cloud(200)), strict=True))


@compiled
def test_exports():
    class Means(torch.nn.Module):
        def forward(self, points):
            return ops.voxelize_mean(points, SIZE, RANGE, 3, 90)[0]

    program = torch.export.export(Means(), (cloud(200),))
    assert torch.equal(program.module()(cloud(200)), Means()(cloud(200)))


@compiled
def test_exports_with_limits_that_follow_the_input():
    def run(points, batch_ptr):
        most = points.shape[0]
        mean, voxels = ops.voxelize_mean(points, SIZE, RANGE, most, most, batch_ptr)
        return mean, voxels.gather(points), ops.voxelize(points, SIZE, RANGE, 3, most // 2, batch_ptr).coords

    dims = [{0: torch.export.Dim("points", min=4)}, {0: torch.export.Dim("bounds", min=3)}]
    program = exported(run, cloud(200), torch.tensor([0, 20, 150, 200]), dynamic_shapes=dims)
    for count, bounds in ((200, [0, 20, 150, 200]), (300, [0, 9, 300]), (90, [0, 0, 40, 80, 90])):
        args = (cloud(count), torch.tensor(bounds))
        assert all(torch.equal(a, b) for a, b in zip(program(*args), run(*args), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("order", ["first", "key"])
def test_same_bits_for_any_run_and_thread_count(device, order):
    points = cloud(40_000, spread=11).to(device)

    def bits():
        means, voxels = ops.voxelize_mean(points, (0.4, 0.4, 20), (-10, -10, -10, 10, 10, 10), 10, 2000, order=order)
        return [means, voxels.gather(points), *lists_of(voxels)]

    assert_same_bits(bits)


@pytest.mark.parametrize("device", DEVICES)
def test_few_points(device):
    for points, found in [
        (torch.zeros(0, 5), 0), (torch.zeros(1, 5), 1), (torch.full((3, 5), 9.0), 0),
        (torch.full((3, 5), float("nan")), 0), (torch.full((300, 4), 1e38), 0), (torch.full((9000, 5), -0.0), 1),
    ]:  # fmt: skip
        means, voxels = ops.voxelize_mean(points.to(device), SIZE, RANGE, 3, 90)
        assert int(voxels.num_voxels) == found and not means.any()
        assert int(voxels.counts.sum()) == (min(len(points), 3) if found else 0)
    _, voxels = ops.voxelize_mean(torch.zeros(0, 5), SIZE, RANGE, 3, 90, torch.tensor([0]))
    assert voxels.coords.shape == (0, 4) and int(voxels.num_voxels) == 0


def test_strided_points():
    points = cloud(200)
    ours = ops.voxelize(torch.cat([points, points], 1)[:, :5], SIZE, RANGE, 3, 90)
    assert torch.equal(ours.voxel, ops.voxelize(points, SIZE, RANGE, 3, 90).voxel)
    bounds = torch.tensor([[0, 9], [90, 9], [200, 9]])
    loose, whole = (
        ops.voxelize_mean(points, SIZE, RANGE, 3, 90, ptr) for ptr in (bounds[:, 0], bounds[:, 0].contiguous())
    )
    assert not bounds[:, 0].is_contiguous() and torch.equal(loose[0], whole[0])
    assert torch.equal(ops.voxelize(points, SIZE, RANGE, 3, 90, bounds[:, 0]).voxel, whole[1].voxel)


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    points = cloud(200)

    def both():
        means, voxels = ops.voxelize_mean(points, SIZE, RANGE, 3, 90)
        return means, voxels.voxel, ops.voxelize(points, SIZE, RANGE, 3, 90).voxel

    assert_twin_warns_once(monkeypatch, both)


def test_wrong_input_says_what_was_expected():
    points = cloud(10)
    good = {"points": points, "voxel_size": SIZE, "point_range": RANGE, "max_points": 3, "max_voxels": 9}
    for change, message in [
        ({"points": points[0]}, r"points has shape \[5\]; expected \[P, F\]"),
        ({"points": points[:, :2]}, r"points has shape \[10, 2\]; expected at least x, y, z"),
        ({"points": points.long()}, "points is torch.int64"),
        ({"voxel_size": (0.5, 0.5)}, "voxel_size has 2 numbers"),
        ({"voxel_size": (0.5, 0.0, 1.0)}, "expected sizes above 0"),
        ({"point_range": (2, 2, 2, 1, 3, 3)}, "low < high"),
        ({"point_range": (-math.inf, 0, 0, 1, 1, 1)}, "within float32"),
        ({"point_range": (0, 0, 0, 1, math.inf, 1)}, "within float32"),
        ({"point_range": (0, 0, 0, 1, 1e39, 1)}, "within float32"),
        ({"point_range": (math.nan, 0, 0, 1, 1, 1)}, "within float32"),
        ({"voxel_size": (5e-324, 1, 1)}, "within float32"),
        ({"voxel_size": (1e-39, 1, 1), "point_range": (0, 0, 0, 1e-38, 1, 1)}, "within float32"),
        ({"voxel_size": (math.inf, 1, 1)}, "1 to 16777215 each"),
        ({"voxel_size": (1e-8, 1, 1)}, r"400000000, 4, 4\] voxels along x, y, z"),
        ({"voxel_size": (1e-6, 1e-3, 1)}, "less than 4294967295 in all"),
        ({"max_points": 0}, "max_points 0"),
        ({"max_voxels": 0}, "max_voxels 0"),
        ({"order": "last"}, "order: found 'last'"),
        ({"batch_ptr": torch.tensor([0, 5])}, r"found \[0, 5\]; expected it to ascend from 0 to 10"),
        ({"batch_ptr": torch.tensor([0, 7, 5, 10])}, "ascend"),
        ({"batch_ptr": torch.tensor([0, 10]).int()}, "batch_ptr is torch.int32"),
        ({"batch_ptr": torch.tensor([0, 10], device="meta")}, "on meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.voxelize(**{**good, **change})
    for features, message in [
        (torch.zeros(9, 2), r"features has shape \[9, 2\]"), (torch.zeros(10), r"expected \[P, C\]"),
        (torch.zeros(10, 2).long(), "features is torch.int64"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ops.voxelize_mean(**good, features=features)


@compiled
@reads_values
def test_batches_that_do_not_ascend_are_rejected():
    with pytest.raises(RuntimeError, match="ascend"):
        torch.ops.fusion3d.voxelize(
            cloud(10), torch.tensor([0, 99]), list(SIZE), list(RANGE[:3]), [8, 10, 4], 2, 9, False
        )


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    points, tail = cloud(10), (list(SIZE), list(RANGE[:3]), [8, 10, 4], 2, 9, False)
    op = torch.ops.fusion3d.voxelize
    for args, message in [
        ((points.T, None, *tail), "contiguous"),
        ((points, None, [0.5, 0.5], *tail[1:]), "three sizes"),
        ((points, None, *tail[:2], [2**16, 2**16, 1], *tail[3:]), "fewer than"),
        ((points[:, :2].contiguous(), None, *tail), "at least x, y, z"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            op(*args)
