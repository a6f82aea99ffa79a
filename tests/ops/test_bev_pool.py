"""BEV pooling: the plan, the compiled kernel against its twin and plain loops, and what torch asks of an op."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from harness import DEVICES, assert_same_bits, assert_twin_warns_once, compiled, exported, needs_kernel, opcheck
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import reference


def make(shape=(2, 7, 3, 5), channels=19, num_cells=23, dtype=torch.float32, device="cpu", seed=0, outside=0.3):
    """Random depth, features and plan."""
    random = torch.Generator().manual_seed(seed)
    images, _, rows, cols = shape
    depth = torch.rand(shape, generator=random, dtype=torch.float64)
    feat = torch.randn(images, channels, rows, cols, generator=random, dtype=torch.float64)
    cell = torch.randint(0, max(num_cells, 1), shape, generator=random)
    cell[torch.rand(shape, generator=random) < outside] = -1
    plan = ops.bev_pool_plan(cell.to(device), num_cells)
    return depth.to(device, dtype).requires_grad_(), feat.to(device, dtype).requires_grad_(), plan


def twin(depth, feat, plan):
    return reference.bev_pool(depth, feat.permute(0, 2, 3, 1), plan.sample, plan.pixel, plan.cell_ptr)


def test_plain_loops():
    depth, feat, plan = make()
    want = torch.zeros(plan.num_cells, feat.shape[1], dtype=torch.float64)
    for m, d, h, w in (plan.cell >= 0).nonzero().tolist():
        want[plan.cell[m, d, h, w]] += depth[m, d, h, w].double() * feat[m, :, h, w].double()
    torch.testing.assert_close(ops.bev_pool(depth, feat, plan).double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(twin(depth, feat, plan).double(), want, rtol=1e-5, atol=1e-5)


def test_plan_orders_samples_by_cell():
    cell = torch.tensor([2, -1, 0, 2, 0, -1, 1, 0]).reshape(1, 4, 1, 2)
    plan = ops.bev_pool_plan(cell, 4)
    assert plan.sample.tolist() == [2, 4, 7, 6, 0, 3, 1, 5]  # the last two are outside
    assert plan.pixel.tolist() == [0, 0, 1, 0, 0, 1, 1, 1]
    assert plan.cell_ptr.tolist() == [0, 3, 4, 6, 6]
    assert plan.num_cells == 4


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (8, 8), (19, 13), (3, 40), (40, 3), (16, 24)])
def test_walk_visits_every_cell_once_in_parts_of_equal_work(rows, cols):
    random = torch.Generator().manual_seed(0)
    cell = torch.randint(-1, rows * cols, (2, 50, 4, 9), generator=random)
    plan = ops.bev_pool_plan(cell, rows * cols, cols)
    assert plan.order.sort().values.tolist() == list(range(rows * cols))
    assert plan.part[0] == 0 and plan.part[-1] == rows * cols and (plan.part.diff() >= 0).all()
    work = (plan.cell_ptr.diff() + 2)[plan.order]
    shares = [int(work[a:b].sum()) for a, b in plan.part.unfold(0, 2, 1).tolist()]
    assert max(shares) <= int(work.sum()) / len(shares) + int(work.max())
    if rows >= 8 and cols >= 8:
        tile = plan.order[:64]
        assert int((tile // cols).max()) < 8 and int((tile % cols).max()) < 8


def test_rows_of_the_grid_do_not_change_a_bit():
    depth, feat, _ = make(num_cells=24)
    cell = torch.randint(-1, 24 * 17, depth.shape, generator=torch.Generator().manual_seed(0))
    plain, tiled = (ops.bev_pool(depth, feat, ops.bev_pool_plan(cell, 24 * 17, cols)) for cols in (None, 17))
    assert torch.equal(plain, tiled)
    with pytest.raises(ValueError, match="whole rows"):
        ops.bev_pool_plan(cell, 24 * 17, 16)


@compiled
@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**20), st.integers(1, 2**20), st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8))
def test_pixel_of_any_sample(bins, area, samples):
    pixel = torch.ops.fusion3d.bev_pool_pixel(torch.tensor(samples, dtype=torch.int32), bins, area)
    want = [s // (bins * area) * area + s % area for s in samples]
    assert pixel.tolist() == want
    assert reference.bev_pool_pixel(torch.tensor(samples), bins, area).tolist() == want


@compiled
def test_pixel_opcheck():
    opcheck(torch.ops.fusion3d.bev_pool_pixel, torch.arange(24, dtype=torch.int32), 3, 4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
@pytest.mark.parametrize("channels", [1, 4, 19, 80, 131])
def test_kernel_equals_twin(device, dtype, tolerance, channels):
    needs_kernel(device)
    depth, feat, plan = make((3, 11, 4, 6), channels, 50, dtype, device)
    exact = [t.detach().double().requires_grad_() for t in (depth, feat)]
    out, want = ops.bev_pool(depth, feat, plan), twin(*exact, plan)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    out.backward(grad)
    want.backward(grad.double())
    assert out.dtype == depth.grad.dtype == feat.grad.dtype == dtype
    for found, expected in ((out, want), (depth.grad, exact[0].grad), (feat.grad, exact[1].grad)):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * 5)


@pytest.mark.parametrize("device", DEVICES)
def test_more_bins_than_shared_memory_holds_unasked(device):
    needs_kernel(device)
    depth, feat, plan = make((1, 13_000, 1, 1), 3, 7, device=device)
    exact = [t.detach().double().requires_grad_() for t in (depth, feat)]
    ops.bev_pool(depth, feat, plan).square().sum().backward()
    twin(*exact, plan).square().sum().backward()
    torch.testing.assert_close(depth.grad.double(), exact[0].grad, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(feat.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(0, 5)] * 4), st.integers(0, 40), st.integers(0, 30), st.sampled_from([0, 0.5, 1]))
def test_any_shape(shape, channels, num_cells, outside):
    depth, feat, plan = make(shape, channels, num_cells, outside=1 if num_cells == 0 else outside)
    exact = [t.detach().double().requires_grad_() for t in (depth, feat)]
    out, want = ops.bev_pool(depth, feat, plan), twin(*exact, plan)
    assert out.shape == (num_cells, channels)
    out.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(depth.grad.double(), exact[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(feat.grad.double(), exact[1].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_all_outside_is_zero(device):
    depth, feat, plan = make(outside=1.1, device=device)
    out = ops.bev_pool(depth, feat, plan)
    out.sum().backward()
    assert not out.any() and not depth.grad.any() and not feat.grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    depth, feat, plan = make((2, 3, 2, 2), 5, 6, torch.float64, device)
    assert torch.autograd.gradcheck(lambda d, f: ops.bev_pool(d, f, plan), (depth, feat))


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    depth, feat, plan = make(device=device)
    feat = feat.detach().permute(0, 2, 3, 1).contiguous().requires_grad_()
    args = (depth, feat, plan.cell, plan.sample, plan.pixel, plan.cell_ptr, plan.order, plan.part)
    opcheck(torch.ops.fusion3d.bev_pool, *args)
    grad = torch.ones(plan.num_cells, feat.shape[3], device=device)
    opcheck(torch.ops.fusion3d.bev_pool_backward, grad, depth.detach(), feat.detach(), plan.cell)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph_plan_included(backend):
    depth, feat, plan = make(num_cells=24)

    def pool(depth, feat, cell):
        return ops.bev_pool(depth, feat, ops.bev_pool_plan(cell, 24, 6))

    found = torch.compile(pool, backend=backend, fullgraph=True)(depth, feat, plan.cell)
    torch.testing.assert_close(found, pool(depth, feat, plan.cell), rtol=0, atol=0)
    found.square().sum().backward()
    assert depth.grad.any() and feat.grad.any()


def test_exports():
    def pool(depth, feat, cell):
        return ops.bev_pool(depth, feat, ops.bev_pool_plan(cell, 24, 6))

    depth, feat, plan = make(num_cells=24)
    args = (depth.detach(), feat.detach(), plan.cell)
    assert torch.equal(exported(pool, *args)(*args), pool(*args))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    def bits():
        depth, feat, plan = make((4, 30, 8, 11), 40, 200, device=device)
        out = ops.bev_pool(depth, feat, plan)
        out.backward(out.detach())
        return out.detach(), depth.grad, feat.grad

    assert_same_bits(bits)


def test_autocast_casts_both():
    depth, feat, plan = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.bev_pool(depth, feat, plan)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ops.bev_pool(depth, feat, plan), rtol=3e-2, atol=3e-2)
    out.float().sum().backward()
    assert depth.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.bev_pool(depth.double(), feat.double(), plan).dtype == torch.float64


def test_special_numbers_of_half_survive():
    values = torch.tensor([0.0, -0.0, 6e-8, -3e-5, 6.1e-5, 1.0, -2.5, 65504.0, float("inf"), float("nan")])
    feat = values.half().reshape(1, 10, 1, 1)
    plan = ops.bev_pool_plan(torch.zeros(1, 1, 1, 1, dtype=torch.int64), 1)
    for dtype in (torch.float16, torch.bfloat16):
        out = ops.bev_pool(torch.ones(1, 1, 1, 1, dtype=dtype), feat.to(dtype), plan)
        assert torch.equal(out[0].isnan(), feat.flatten().isnan())
        assert torch.equal(out[0, :9], feat.to(dtype).flatten()[:9])


@compiled
def test_rounding_of_half_is_to_nearest_even():
    # 1 + k * 2^-12 lies between halves (2^-10 apart at 1): every position of the rounding, ties included.
    sums = torch.cat([1 + torch.arange(64) * 2.0**-12, torch.arange(64) * 2.0**-26, torch.tensor([65519.0, 65520.0])])
    for dtype in (torch.float16, torch.bfloat16):
        high = sums.clamp(max=65504).to(dtype)
        low = (sums - high.float()).to(dtype)
        feat = torch.stack([high, low]).T.reshape(1, len(sums), 1, 2)
        plan = ops.bev_pool_plan(torch.zeros(1, 1, 1, 2, dtype=torch.int64), 1)
        out = ops.bev_pool(torch.ones(1, 1, 1, 2, dtype=dtype), feat.contiguous(), plan)
        assert torch.equal(out[0], (high.float() + low.float()).to(dtype))


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    depth, feat, plan = make()
    assert_twin_warns_once(monkeypatch, lambda: ops.bev_pool(depth, feat, plan), atol=1e-5)


def test_wrong_input_says_what_was_expected():
    depth, feat, plan = make()
    other = dataclasses.replace(plan, cell=plan.cell[:1])
    cases = [
        ((depth[0], feat, plan), r"depth has shape \[7, 3, 5\]; expected \[M, D, H, W\]"),
        ((depth, feat[..., :4], plan), r"feat has shape .*expected \[2, C, 3, 5\]"),
        ((depth.long(), feat, plan), r"depth is torch.int64; expected"),
        ((depth, feat.double(), plan), r"expected one dtype"),
        ((depth, feat, other), r"expected that of the plan"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            ops.bev_pool(*args)
    cell = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    for bad, count, message in [
        (cell[0], 4, "expected"), (cell.float(), 4, "int64"), (cell + 4, 4, "less than 4"),
        (cell - 2, 4, "expected -1"), (cell, -1, "cells"), (cell, 2**31, "cells"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ops.bev_pool_plan(bad, count)


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    depth, feat, plan = make()
    rows = feat.detach().permute(0, 2, 3, 1).contiguous()
    lists = (plan.sample, plan.pixel, plan.cell_ptr, plan.order, plan.part)
    op = torch.ops.fusion3d.bev_pool
    with pytest.raises(RuntimeError, match="contiguous"):
        op(depth, feat.detach().permute(0, 2, 3, 1), plan.cell, *lists)
    with pytest.raises(RuntimeError, match="wrong dtype"):
        op(depth, rows, plan.cell.long(), *lists)
    with pytest.raises(RuntimeError, match="M, H, W, C"):
        op(depth, rows[:, :2].contiguous(), plan.cell, *lists)
    with pytest.raises(RuntimeError, match="equally long"):
        op(depth, rows, plan.cell, plan.sample[1:], *lists[1:])
